"""What a model is fine-tuned for: rows of data to examples, and answers to metrics. One file a task."""
