"""Answers: who starts the workers, and what becomes of them?"""
