"""How does a model continue a text? Sampling, beam search, and where a text ends."""
