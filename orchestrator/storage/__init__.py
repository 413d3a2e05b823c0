"""Answers: where and how are files stored?"""
