"""Answers: how are workers started, and what happens when they end?"""
