"""The one error that the training library raises for something its user can mend."""


class InputError(ValueError):
    """Text, a file or a value that cannot be used: the message names the value, the rule and the mend."""
