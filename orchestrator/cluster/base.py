"""The launcher interface. Every launcher calls `train(job, runtime)` in each worker of a run."""

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from modules.errors import InputError
from orchestrator.distributed.runtime import Event
from orchestrator.errors import HardwareError, OrchestratorError

if TYPE_CHECKING:  # Ray Train's controller imports this file, and needs neither
    from orchestrator.configuration.commands import TrainingRunConfig
    from orchestrator.runs.run import Job


class Launcher(Protocol):
    """Starts the workers of one run and waits for them.

    Constructed from a TrainingRunConfig; the constructor raises HardwareError, before anything is written or waited
    for, if there is less hardware than the workers request.
    """

    def launch(self, job: "Job", emit: Callable[[Event], None]) -> None:
        """Run `job` on every worker until all are done, with as many new attempts as `cluster.max_failures` allows.

        Rank 0's events and those of faults and restarts are passed to `emit`.

        Raises:
            WorkerError: a worker failed; the message is the worker's own, with rank and node.
            StoppedError: the run received a notice of termination.
        """
        ...


def is_final(error: BaseException) -> bool:
    """Return whether a new attempt would fail in the same way."""
    return isinstance(error, InputError) or (isinstance(error, OrchestratorError) and error.is_final)


def error_text(error: BaseException) -> str:
    """Return the text to show for a worker's error: ours explain themselves, others need their class name."""
    return str(error) if isinstance(error, OrchestratorError | InputError) else f"{type(error).__name__}: {error}"


def restart_event(number: int, limit: int | None, what: str = "restart") -> Event:
    """Return the event of the next attempt.

    Args:
        number: Number of the fault before it, counted from 1.
        limit: How many are allowed; None for any number.
        what: What is counted, `restart` or `preemption`.
    """
    of = "" if limit is None else f" of {limit}"
    return {"kind": "restart", "number": number, "text": f"restarting from the last checkpoint ({what} {number}{of})"}


def check_device(config: "TrainingRunConfig", use_gpu: bool) -> None:
    """Check that this kind of device can run the configuration.

    Raises:
        HardwareError: float16 or TF32 was requested without GPUs, or compilation on CPU without a compiler.
    """
    # Ray Train's controller imports this file, and checks nothing
    from orchestrator.configuration.rules import device_mistakes

    compiler = os.environ.get("CXX", "g++")
    if config.training.compiled and not use_gpu and not shutil.which(compiler):
        raise HardwareError(
            f"{config.training.compiled}: torch.compile needs a C++ compiler on CPU, and there is no {compiler}; "
            "apt-get install g++ python3-dev, dnf install gcc-c++ python3-devel, or leave it out"
        )
    if mistakes := device_mistakes(config.training, use_gpu):
        raise HardwareError("\n".join(mistakes))
