"""One action on a URL: the file system behind it, retries after transient errors, short error messages."""

import io
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.core import split_protocol, url_to_fs

from orchestrator.errors import StorageError, UserError
from orchestrator.storage.errors import explain
from orchestrator.storage.redaction import has_credentials, redact
from orchestrator.storage.retry import RetryingFile, retried

T = TypeVar("T")
log = logging.getLogger(__name__)

_READ_BUFFER_BYTES = 2**20


def protocol_of(url: str) -> str | None:
    """Return the protocol, as `s3` for `s3://bucket`; None for a bare path."""
    return split_protocol(url)[0]


def path_of(url: str) -> str:
    """Return `url` without its protocol."""
    return split_protocol(url)[1]


def is_local(url: str) -> bool:
    """Return whether `url` is a path on this machine."""
    return protocol_of(url) in (None, "file", "local")


def run_on_url(verb: str, url: str, action: Callable[[Any, str], T]) -> T:
    """Run `action(file system, path)` for `url`, with retries after transient errors.

    Args:
        verb: the name of the action in messages: "read", "write", "list".

    Raises:
        NotFoundError: there is nothing at `url`.
        StorageError: anything else; the message names the URL without credentials, and the remedy.
    """
    try:
        # Requested on each attempt: fsspec caches it per process and thread, so nothing crosses a fork.
        return retried(lambda: action(*file_system(url)), on_long_wait=partial(_report_wait, url))
    except Exception as error:
        # A builtin error that is no OSError is a bug, and keeps its traceback.
        if isinstance(error, StorageError) or not _is_foreign(error):
            raise
        # `from None`: the original text may hold a signed URL.
        raise explain(error, verb, url) from None


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for `url`, and the path in it.

    Raises:
        UserError: the package for this kind of store is not installed.
    """
    try:
        # Cached listings would hide what other processes write.
        return url_to_fs(url, **({} if is_local(url) else {"use_listings_cache": False}))
    except ImportError as error:
        raise UserError(f"{redact(url)}: {error}") from None


def open_url(url: str) -> io.BufferedReader:
    """Return the file at `url` for reading; after a lost connection it is reopened at the same byte."""
    if is_local(url):
        return run_on_url("read", url, lambda _, path: open(path, "rb"))
    run_on_url("read", url, lambda fs, path: fs.info(path))

    def opened() -> BinaryIO:
        fs, path = file_system(url)
        return fs.open(path, "rb")

    raw = RetryingFile(opened, lambda attempt: run_on_url("read", url, lambda *_: attempt()))
    return io.BufferedReader(raw, _READ_BUFFER_BYTES)


def check_url(url: str) -> None:
    """Raise UserError if `url` holds a password or its kind of store is unknown."""
    if has_credentials(url):
        raise UserError(
            f"{redact(url)}: a URL must not hold a key or password; put it into the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, …)"
        )
    protocol = protocol_of(url)
    if not is_local(url) and protocol not in fsspec.available_protocols():
        raise UserError(f"{redact(url)}: {protocol!r} is no kind of store that fsspec knows; s3, gs, https or a folder")


def _report_wait(url: str, error: Exception, seconds: float) -> None:
    log.warning("%s does not answer (%s); trying for another %d s", redact(url), type(error).__name__, seconds)


def _is_foreign(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__ != "builtins"
