"""Answers: what would a run find on this machine, in its store and at its services?"""
