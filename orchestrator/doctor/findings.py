"""The result of a check, and how checks run: all concurrently, and none can stop another."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from modules.errors import InputError
from orchestrator.errors import OrchestratorError
from orchestrator.storage.redaction import redact, without_secrets

Status = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    status: Status
    text: str
    remedy: str = ""
    """What to do about it; empty where there is nothing to do."""


Check = Callable[[], Finding]


def run_checks(checks: Mapping[str, Check], limit_seconds: float) -> Iterator[tuple[str, Finding]]:
    """Run all checks concurrently, and yield name and finding of each, in the order given, as soon as it is available.

    A check that raises, or does not end within `limit_seconds`, has failed.
    """
    deadline = time.monotonic() + limit_seconds
    running = {name: _Running(check) for name, check in checks.items()}
    for name, check in running.items():
        yield (
            name,
            check.finding(deadline)
            or Finding(
                "failure", f"no answer within {limit_seconds:g} s", "look at what it queries, then run doctor again"
            ),
        )


class _Running:
    """A check on its own daemon thread, which does not keep the process from ending."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._finding: Finding | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finding(self, deadline: float) -> Finding | None:
        """Return the finding, or None if the check has not ended by `deadline`, a time of `time.monotonic`."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self._finding

    def _run(self) -> None:
        try:
            found = self._check()
            self._finding = replace(found, text=_shown(found.text), remedy=_shown(found.remedy))
        except (OrchestratorError, InputError) as error:
            self._finding = Finding("failure", _shown(str(error)))
        except Exception as error:
            self._finding = Finding("failure", _shown(f"the check itself failed: {type(error).__name__}: {error}"))


def _shown(text: str) -> str:
    return redact(without_secrets(text))
