"""What composes the configurations of other commands; the command line gives one, the only speaker of Hydra."""

from collections.abc import Sequence
from typing import Protocol

from modules.config import Config


class Composer(Protocol):
    """Composes and validates the configuration of any command in this process."""

    @property
    def config_dir(self) -> str | None:
        """The user's folder of options."""
        ...

    @property
    def flags(self) -> list[str]:
        """The flags with which another program finds the same options."""
        ...

    def kind(self, command: str) -> type[Config]:
        """Return the configuration class of a command; raise ConfigError if there is none."""
        ...

    def compose(self, command: str, overrides: Sequence[str]) -> Config:
        """Return a validated configuration; raise ConfigError with every mistake, one line each."""
        ...

    def compose_all(self, command: str, overrides: Sequence[str]) -> list[Config]:
        """Return the configurations of all runs of `--multirun`; raise ConfigError with every mistake in them."""
        ...
