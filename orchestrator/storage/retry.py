"""Retries after transient errors; any other error is raised at once."""

import errno
import io
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")

WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0)
"""Waits between attempts, before jitter: an outage of 30 seconds passes. One attempt more than there are waits."""
_NUM_SILENT_WAITS = 3

_TRANSIENT_ERRNOS = {
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETDOWN", "ENETRESET"),
        *("ENETUNREACH", "EPIPE", "EREMOTEIO", "ESTALE", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
_TRANSIENT_CODES = {
    *("RequestTimeout", "RequestTimeoutException", "InternalError", "ServiceUnavailable", "PriorRequestNotComplete"),
    *("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException"),
}
"""S3's own codes, some of which come with the status 400."""
_TRANSIENT_CLASSES = {
    *("ClientConnectionError", "ClientPayloadError", "ServerTimeoutError"),  # aiohttp
    *("HTTPClientError", "IncompleteRead", "ResponseParserError"),  # botocore, http.client
    *("ConnectionError", "Timeout", "ChunkedEncodingError", "ProtocolError"),  # botocore, requests, urllib3
    *("FSTimeoutError", "RequestTimeout", "TransportError"),  # fsspec, Google
    *("ServiceRequestError", "ServiceResponseError", "IncompleteReadError"),  # Azure
}
_FINAL_CLASSES = {"SSLError", "ClientSSLError", "SSLCertVerificationError"}
"""A wrong certificate stays wrong, though its error is a kind of connection error."""


def retried(
    call: Callable[[], T],
    waits: Sequence[float] = WAITS_SECONDS,
    on_long_wait: Callable[[Exception, float], None] | None = None,
) -> T:
    """Return `call()`, retried after each of `waits` while its error is transient.

    Waits are multiplied by a random factor between 0.75 and 1.25, so that workers which failed together
    do not retry together.

    Args:
        on_long_wait: Receives the error, once, when the wait becomes long, and the seconds for which it may go on.

    Raises:
        Exception: the error of the last attempt, or the first one that is not transient.
    """
    for number, wait in enumerate(waits):
        try:
            return call()
        except Exception as error:
            if not is_transient(error):
                raise
            if number == _NUM_SILENT_WAITS and on_long_wait:
                on_long_wait(error, sum(waits[number:]))
        time.sleep(wait * random.uniform(0.75, 1.25))
    return call()


def is_transient(error: BaseException) -> bool:
    """Return whether `error` is a timeout, throttling, a server's 5xx answer or a lost connection."""
    links = [*_chain(error)]
    if any(_s3_code(link) in _TRANSIENT_CODES for link in links):
        return True
    status = http_status(error)
    if status is not None:
        return status in _TRANSIENT_STATUS
    if any(base.__name__ in _FINAL_CLASSES for link in links for base in type(link).__mro__):
        return False
    return any(_looks_transient(link) for link in links)


def cause_of(error: BaseException) -> BaseException:
    """Return the link of the chain behind a transient error that shows it as such: fsspec raises others over it."""
    return next(filter(_looks_transient, _chain(error)), error)


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status behind `error`; None if a server did not answer with one."""
    return next(filter(None, map(_http_status, _chain(error))), None)


def _looks_transient(error: BaseException) -> bool:
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS:
        return True
    return any(base.__name__ in _TRANSIENT_CLASSES for base in type(error).__mro__)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what led to it: libraries raise their own error in the handler of another, with no cause."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _s3_code(error: BaseException) -> str | None:
    response: Any = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


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
