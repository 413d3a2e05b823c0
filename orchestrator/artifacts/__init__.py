"""Answers: what has been made, and is it whole?"""
