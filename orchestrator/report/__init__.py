"""What is worth looking at afterwards? One page, or a workspace in W&B, made of what runs and evaluations have left."""
