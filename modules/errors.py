"""The error that the training library raises for mistakes that its user can fix."""


class InputError(ValueError):
    """Text, a file or a value that cannot be used. The message names the value, the rule and the fix."""
