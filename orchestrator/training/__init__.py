"""Answers: what does one worker do?"""
