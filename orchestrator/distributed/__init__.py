"""Answers: what is shared between workers, and how is the training state partitioned?"""
