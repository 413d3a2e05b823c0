"""One action on a URL: the file system behind it, retries after transient errors, short error messages."""

import io
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.core import split_protocol, url_to_fs

from orchestrator.errors import OrchestratorError, StorageError, UserError
from orchestrator.storage.errors import explain
from orchestrator.storage.redaction import has_credentials, redact, without_query
from orchestrator.storage.retry import RetryingFile, cause_of, retried

T = TypeVar("T")
log = logging.getLogger(__name__)

_READ_BUFFER_BYTES = 2**20
_LONGEST_NAME_BYTES = 255


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
        if isinstance(error, OrchestratorError) or not _is_foreign(error):
            raise
        # `from None`: the original text may hold a signed URL.
        raise explain(error, verb, url) from None


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for `url`, and the path in it.

    Raises:
        UserError: the package for this kind of store is not installed.
    """
    try:
        options = _options(url)
        return _unchained(url, options) if "::" in url else url_to_fs(url, **options)
    except ImportError as error:
        raise UserError(f"{redact(url)}: {error}") from None


def _options(url: str) -> dict[str, Any]:
    if is_local(url):
        return {}
    # A signed query is sent as it is; encoded anew, it may not fit its signature any more.
    is_signed = protocol_of(url) in ("http", "https") and "?" in url and url.isascii() and " " not in url
    # Cached listings would hide what other processes write.
    return {"use_listings_cache": False, **({"encoded": True} if is_signed else {})}


def _unchained(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """Return what `url_to_fs` returns, without taking `::` in a name for a chain of file systems."""
    from fsspec.archive import AbstractArchiveFileSystem
    from fsspec.implementations.chained import ChainedFileSystem

    kind = fsspec.get_filesystem_class(protocol_of(url) or "file")
    if issubclass(kind, ChainedFileSystem | AbstractArchiveFileSystem):
        return url_to_fs(url, **options)
    path = kind._strip_protocol(url)
    return fsspec.filesystem(protocol_of(url) or "file", **kind._get_kwargs_from_urls(url), **options), path


def open_url(url: str) -> io.BufferedReader:
    """Return the file at `url` for reading; after a lost connection it is reopened at the same byte."""
    if is_local(url):
        return run_on_url("read", url, lambda _, path: open(path, "rb"))
    run_on_url("read", url, lambda fs, path: fs.info(path))

    def opened() -> BinaryIO:
        fs, path = file_system(url)
        return fs.open(path, "rb")

    def run(attempt: Callable[[], T]) -> T:
        try:
            return run_on_url("read", url, lambda *_: attempt())
        except ValueError as error:
            if "range requests" not in str(error):
                raise
            reason = "the web server sends no part of a file; download it and name the local file"
            raise StorageError(f"cannot read {redact(url)}: {reason}") from None

    raw = RetryingFile(opened, run)
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


def check_root(url: str) -> None:
    """Raise UserError if `url` can be no folder of ours: it has a query, `::`, or a name that is too long."""
    if url != without_query(url):
        raise UserError(
            f"{redact(url)}: a URL with a query leads to a single file, and this must be a folder; name it without the "
            "query, with its keys in the environment"
        )
    if "::" in url:
        raise UserError(
            f"{redact(url)}: '::' stands for a chain of file systems (fsspec), which keeps no runs and no models; "
            "choose a folder without it in its whole path"
        )
    too_long = [part for part in url.split("/") if len(os.fsencode(part)) > _LONGEST_NAME_BYTES]
    if is_local(url) and too_long:
        raise UserError(f"{too_long[0][:40]}…: a folder's name has at most {_LONGEST_NAME_BYTES} bytes; shorten it")


def _report_wait(url: str, error: Exception, seconds: float) -> None:
    log.warning(
        "%s does not answer (%s); trying for another %d s", redact(url), type(cause_of(error)).__name__, seconds
    )


def _is_foreign(error: Exception) -> bool:
    return isinstance(error, OSError) or type(error).__module__ != "builtins"
