"""What is asked of a store while something is done."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from orchestrator.storage.store import Storage

_REQUESTS = ("exists", "list", "read_bytes", "write_bytes", "create_bytes", "remove")


@contextmanager
def store_requests() -> Iterator[list[str]]:
    """Yield the names of the requests so far, in order."""
    names: list[str] = []

    def noting(name: str, request: Callable[..., Any]) -> Callable[..., Any]:
        def note_and_pass_on(*arguments: Any, **settings: Any) -> Any:
            names.append(name)
            return request(*arguments, **settings)

        return note_and_pass_on

    with ExitStack() as patches:
        for name in _REQUESTS:
            patches.enter_context(patch.object(Storage, name, noting(name, getattr(Storage, name))))
        yield names
