"""What went wrong in a store, in one short message with the remedy."""

import errno

from orchestrator.errors import RefusedError, StorageError
from orchestrator.storage.redaction import redact
from orchestrator.storage.retry import WAITS_SECONDS, cause_of, http_status, is_transient

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_DENIED_STATUS = (401, 403)
_DENIED_CLASSES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")


class NotFoundError(RefusedError):
    """There is nothing at this path in the store."""


class ExistsError(RefusedError):
    """There is something at this path in the store already."""


def explain(error: Exception, verb: str, url: str, setting: str = "storage.root") -> StorageError:
    """Return the error to show for `error`, which occurred in an attempt to `verb` ("read", "write", …) `url`.

    Args:
        setting: Where another place can be chosen.
    """
    start = f"cannot {verb} {redact(url)}: "
    number = getattr(error, "errno", None)
    if is_full(error):
        return RefusedError(start + f"the disk is full; free space there or choose another {setting}")
    if isinstance(error, PermissionError) or number in _DENIED or type(error).__name__ in _DENIED_CLASSES:
        remedy = " and the keys in the environment" if setting == "storage.root" else f", or choose another {setting}"
        return RefusedError(f"{start}permission denied; check the permissions there{remedy}")
    if http_status(error) in _DENIED_STATUS:
        # fsspec says of a web server's refusal that there is no such file
        return RefusedError(start + "the server denies it; check the keys in the environment, or sign the URL anew")
    if isinstance(error, NotADirectoryError):
        return RefusedError(start + f"a file stands where a folder should be; choose another {setting}")
    if isinstance(error, FileExistsError):
        return ExistsError(start + "it exists already")
    if isinstance(error, FileNotFoundError) and not is_transient(error):
        return NotFoundError(start + "no such file, folder or bucket; correct the name or create it")
    if is_transient(error):
        attempts = len(WAITS_SECONDS) + 1
        return StorageError(
            f"{start}no answer in {attempts} attempts ({_short(cause_of(error))}); check the network, then rerun"
        )
    return StorageError(start + _short(error))


def is_full(error: Exception) -> bool:
    """Return whether there is no room for what was written."""
    return getattr(error, "errno", None) in _FULL


def _short(error: BaseException) -> str:
    text = redact(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
