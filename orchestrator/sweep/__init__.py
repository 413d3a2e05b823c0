"""Which settings are best? Trials of one command, side by side, under records of our own."""
