"""Retries after transient errors; any other error is raised at once."""

import errno
import io
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")

WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between attempts, before jitter; one attempt more than there are waits."""

_TRANSIENT_ERRNOS = {
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETDOWN", "ENETRESET"),
        *("ENETUNREACH", "EPIPE", "EREMOTEIO", "ESTALE", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_TRANSIENT_CLASSES = {
    *("ClientConnectionError", "ClientPayloadError", "ServerTimeoutError"),  # aiohttp
    *("HTTPClientError", "IncompleteRead", "ResponseParserError"),  # botocore, http.client
    *("ChunkedEncodingError", "FSTimeoutError", "RequestTimeout", "ProtocolError", "TransportError"),
}


def retried(call: Callable[[], T], waits: Sequence[float] = WAITS_SECONDS) -> T:
    """Return `call()`, retried after each of `waits` while its error is transient.

    Waits are multiplied by a random factor between 0.5 and 1.5, so that workers which failed together
    do not retry together.

    Raises:
        Exception: the error of the last attempt, or the first one that is not transient.
    """
    for wait in waits:
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(wait * random.uniform(0.5, 1.5))
    return call()


def is_transient(error: BaseException) -> bool:
    """Return whether `error` is a timeout, throttling, a server's 5xx answer or a lost connection."""
    status = next(filter(None, map(_http_status, _chain(error))), None)
    if status is not None:
        return status in _TRANSIENT_STATUS
    return any(_looks_transient(link) for link in _chain(error))


def _looks_transient(error: BaseException) -> bool:
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    return any(base.__name__ in _TRANSIENT_CLASSES for base in type(error).__mro__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _http_status(error: BaseException) -> int | None:
    """Return the HTTP status that botocore, aiohttp or gcsfs attach to their errors."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int | str) and str(value).isdigit() and 100 <= int(value) < 600:
            return int(value)
    return None


class RetryingFile(io.RawIOBase):
    """A readable file that is reopened at the same byte after a transient error."""

    def __init__(self, open_file: Callable[[], BinaryIO], run: Callable[[Callable[[], Any]], Any]) -> None:
        """Set the file up; nothing is opened yet.

        Args:
            open_file: opens the file at its start.
            run: runs the attempts, as `retried` does, and turns the last error into one to show.
        """
        self._open_file = open_file
        self._run = run
        self._file: BinaryIO | None = None
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._run(lambda: self._opened().seekable())

    def readinto(self, buffer: Any) -> int:
        data = self._run(lambda: self._attempt(lambda file: file.read(len(buffer))))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = self._run(lambda: self._attempt(lambda file: file.seek(offset, whence)))
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def _attempt(self, action: Callable[[BinaryIO], T]) -> T:
        try:
            return action(self._opened())
        except Exception:
            self._file = None
            raise

    def _opened(self) -> BinaryIO:
        if self._file is None:
            self._file = self._open_file()
            if self._position:
                self._file.seek(self._position)
        return self._file
