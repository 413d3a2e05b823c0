"""Answers: are this machine, the store and the services fit for a run?"""
