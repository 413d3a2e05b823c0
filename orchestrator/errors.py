"""What can go wrong, by whose doing: a UserError is mended by the user, any other by us or the system."""


class OrchestratorError(Exception):
    """Base of all errors that are told in one short message without a traceback."""


class UserError(OrchestratorError):
    """The user's mistake: the message names the value, the rule and the mend. Exit code 2."""


class ConfigError(UserError):
    """Mistakes in the configuration, all of them, one line each."""


class HardwareError(UserError):
    """More, or other, hardware asked for than there is."""


class RunMismatchError(UserError):
    """A run of this name exists with another recipe."""


class ArtifactError(OrchestratorError):
    """An artifact is missing, uncommitted or damaged."""


class StorageError(OrchestratorError):
    """The store could not be read or written."""


class WorkerError(OrchestratorError):
    """A worker failed: its own short message with rank and node; `details` holds its traceback."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details
