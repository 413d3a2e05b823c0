"""Answers: what is a run, and what became of it?"""
