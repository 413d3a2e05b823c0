"""What is trained, on one device; it knows nothing of how and where it runs."""
