"""What Hydra raises, in one line."""

import contextlib
import re
from collections.abc import Iterator

from orchestrator.errors import ConfigError
from orchestrator.storage.redaction import redact


@contextlib.contextmanager
def hydra_errors_in_one_line() -> Iterator[None]:
    """Turn an error of Hydra or OmegaConf into a ConfigError with its first line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error of Hydra, with the reason where it says no more than what it did."""
    text = str(error).strip() or str(error.__cause__)
    override = re.match(r"Error merging override \+*(.*)", text)
    if override and error.__cause__:
        text = f"{override[1]}: {str(error.__cause__).strip() or type(error.__cause__).__name__}"
    return redact(text.splitlines()[0])
