"""Answers: which stages, in what order, and why?"""
