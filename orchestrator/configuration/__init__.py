"""Answers: what may be asked for?"""
