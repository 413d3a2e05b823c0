"""Answers: which artifacts exist, and are they complete?"""
