"""Answers: what does each command do? One file per command, each with `run(config)`."""
