"""How well does a model do what it is used for?"""
