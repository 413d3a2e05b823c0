"""Models in the form of Hugging Face's `transformers`: settings, names and files. No pickle is read or written."""
