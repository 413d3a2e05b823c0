"""Answers: how does the training state outlive a process?"""
