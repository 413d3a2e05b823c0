"""What is asked of a store while something is done."""

import math
from collections import Counter
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


PAGE_NAMES = 1000
"""Names in one answer to a listing."""
_READS, _WRITES = ("read_bytes", "read_range"), ("write_bytes", "create_bytes", "upload")
_COUNTED = ("exists", "list", "remove", "num_bytes", "modified_seconds", *_READS, *_WRITES)


@contextmanager
def counted_store() -> Iterator[Counter[str]]:
    """Count the requests of every remote store, a listing once a page, and the bytes that are read and written."""
    counts: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(Storage, name)

        def request(self: Storage, *arguments: Any, **settings: Any) -> Any:
            answer = original(self, *arguments, **settings)
            counts["requests"] += max(1, math.ceil(len(answer) / PAGE_NAMES)) if name == "list" else 1
            counts["bytes read"] += len(answer) if name in _READS else 0
            if name in _WRITES:
                counts["bytes written"] += arguments[0].stat().st_size if name == "upload" else len(arguments[1])
            return answer

        return request

    with ExitStack() as patches:
        for name in _COUNTED:
            patches.enter_context(patch.object(Storage, name, counting(name)))
        yield counts
