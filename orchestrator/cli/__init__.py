"""Answers: what did the user type? It composes by Hydra, validates, and starts a command by its name."""

from orchestrator.cli.program import main as main  # the console script and `python -m` start it
