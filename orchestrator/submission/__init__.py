"""Answers: how does a command get onto a Ray cluster, and what became of it there?"""
