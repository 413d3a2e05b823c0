"""What of a text should not be learned: found, left out or replaced, and counted, before it is split and tokenised."""
