"""What can go wrong, by whose doing: a UserError is for the user to fix, any other for us or the system."""

import signal


class OrchestratorError(Exception):
    """Base of all errors that are told in one short message without a traceback."""


class UserError(OrchestratorError):
    """The user's mistake: the message names the value, the rule and the remedy. Exit code 2."""


class ConfigError(UserError):
    """Mistakes in the configuration, all of them, one line each."""


class HardwareError(UserError):
    """More, or other, hardware asked for than there is."""


class RunMismatchError(UserError):
    """A run of this name exists with another recipe."""


class LeaseError(UserError):
    """Another driver runs this run."""


class ArtifactError(OrchestratorError):
    """An artifact is missing, uncommitted or damaged."""


class StorageError(OrchestratorError):
    """The store could not be read or written."""


class DamagedFileError(OrchestratorError):
    """A small file of a run is empty, cut off or not what it should be; the message names it and the remedy."""


class MachineError(OrchestratorError):
    """The machine, its store or a service is not fit for a run."""


class BadStepsError(OrchestratorError):
    """Too many steps in a row had to be skipped."""


class WorkerError(OrchestratorError):
    """A worker failed: its own short message with rank and node.

    Args:
        message: What to show.
        details: The worker's traceback.
        is_final: A new attempt would fail in the same way.
    """

    def __init__(self, message: str, details: str = "", is_final: bool = False) -> None:
        super().__init__(message)
        self.details, self.is_final = details, is_final


def exit_code(signal_number: int) -> int:
    """Return the exit code after a notice of termination: 130 for Ctrl-C, and 143 whichever other signal it was."""
    return 128 + (signal_number if signal_number == signal.SIGINT else signal.SIGTERM)


class StoppedError(OrchestratorError):
    """A run ended before its time on a notice of termination, after a last checkpoint."""

    def __init__(self, signal_number: int, step: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"{name}: saved after step {step} and stopped; the same command goes on from there")
        self.signal_number, self.step = signal_number, step

    def __reduce__(self) -> tuple[type["StoppedError"], tuple[int, int]]:
        return StoppedError, (self.signal_number, self.step)


class MovedError(OrchestratorError):
    """The workers have saved and end, so that others go on with the run."""

    def __init__(self, step: int) -> None:
        super().__init__(f"saved after step {step}; the run goes on with other workers")
        self.step = step

    def __reduce__(self) -> tuple[type["MovedError"], tuple[int]]:
        return MovedError, (self.step,)
