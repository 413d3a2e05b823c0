"""Answers: which settings does each command have, and which values are valid?"""
