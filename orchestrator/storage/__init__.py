"""Answers: where does it lie?"""
