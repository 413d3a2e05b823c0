"""What happens around each step of a fit, in the order of `order.py`."""
