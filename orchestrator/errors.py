"""All errors, by cause: the user can fix a UserError; any other comes from this project or the system."""

import signal


class OrchestratorError(Exception):
    """Base of all errors that are shown as one short message without a traceback."""

    is_final = True
    """Whether a new attempt would fail in the same way."""


class UserError(OrchestratorError):
    """The user's mistake: the message names the value, the rule and the remedy. Exit code 2."""


class ConfigError(UserError):
    """All mistakes in the configuration, one line each."""


class HardwareError(UserError):
    """The configuration requests more, or other, hardware than there is."""


class RunMismatchError(UserError):
    """A run of this name with another recipe exists."""


class LeaseError(UserError):
    """Another driver is executing this run."""


class LeaseLostError(OrchestratorError):
    """Another driver has taken over the run that this process works for."""


class ArtifactError(OrchestratorError):
    """An artifact is missing, uncommitted or damaged."""


class OtherCheckpointError(OrchestratorError):
    """A whole checkpoint from which this run cannot continue: of another version of this program, or another model."""


class StorageError(OrchestratorError):
    """The store could not be read or written, which may pass."""

    is_final = False


class RefusedError(StorageError):
    """The store refuses this now and later: permission denied, no space, nothing there, or something in its place."""

    is_final = True


class DamagedFileError(OrchestratorError):
    """A small file of a run is empty, truncated or malformed; the message names it and the remedy."""


class MachineError(OrchestratorError):
    """The machine, its store or a service is not fit for a run."""


class LostNodeError(OrchestratorError):
    """The node on which a stage of a pipeline ran is gone."""

    is_final = False


class StageError(OrchestratorError):
    """Stages of a pipeline have failed; the message names each, with its error and its log."""


class TrialError(OrchestratorError):
    """Trials of a sweep have failed; the message names each, with its error and its log."""


class BadStepsError(OrchestratorError):
    """Too many steps in a row had to be skipped."""


class WorkerError(OrchestratorError):
    """A worker failed; the message is the worker's own, with rank and node.

    Args:
        message: The message to show.
        details: The worker's traceback.
        is_final: A new attempt would fail in the same way.
    """

    def __init__(self, message: str, details: str = "", is_final: bool = False) -> None:
        super().__init__(message)
        self.details, self.is_final = details, is_final


def exit_code(signal_number: int) -> int:
    """Return the exit code after a notice of termination: 130 for Ctrl-C, 143 for any other signal."""
    return 128 + (signal_number if signal_number == signal.SIGINT else signal.SIGTERM)


class StoppedError(OrchestratorError):
    """A notice of termination ended the run early, after a last checkpoint."""

    def __init__(self, signal_number: int, step: int) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"{name}: saved after step {step} and stopped; the same command continues from there")
        self.signal_number, self.step = signal_number, step

    def __reduce__(self) -> tuple[type["StoppedError"], tuple[int, int]]:
        return StoppedError, (self.signal_number, self.step)


class MovedError(OrchestratorError):
    """The workers have saved and now end, so that other workers can continue the run."""

    def __init__(self, step: int) -> None:
        super().__init__(f"saved after step {step}; the run continues with other workers")
        self.step = step

    def __reduce__(self) -> tuple[type["MovedError"], tuple[int]]:
        return MovedError, (self.step,)
