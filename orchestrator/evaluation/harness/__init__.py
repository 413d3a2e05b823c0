"""Answers: how good is a model on tasks of lm-evaluation-harness? Nothing else speaks to that library."""
