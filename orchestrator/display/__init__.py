"""Answers: what does a person see in the terminal?"""
