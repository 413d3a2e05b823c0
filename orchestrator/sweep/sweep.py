"""A sweep: the trials of one command, where they are stored, and what they are compared by."""

from dataclasses import dataclass

from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.storage.store import Storage
from orchestrator.sweep.suggestions import Suggestions
from orchestrator.sweep.trial import Trial, trial_name


@dataclass(frozen=True)
class Sweep:
    """The trials of one command."""

    name: str
    command: str
    trials: list[Trial]
    """Those that are known; suggestions are added."""
    configs: dict[int, TrainingRunConfig]
    """The configuration of each trial by its number."""
    metric: str
    """That they are compared by."""
    storage: Storage
    root: str
    """The storage root, as children are told it."""
    flags: tuple[str, ...] = ()
    """With which a child finds the same options."""
    suggestions: Suggestions | None = None
    """Makes further trials."""

    @property
    def names(self) -> list[str]:
        """The names of all trials, also of those that are not known yet."""
        number = self.suggestions.num_trials if self.suggestions else len(self.trials)
        return [trial_name(at) for at in range(number)]
