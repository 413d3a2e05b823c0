"""Answers: what happens when I type this? One file a command, each with `run(config)`."""
