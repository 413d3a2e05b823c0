"""Answers: how good is a model, and against which?"""
