"""Staging folders: hidden beside the final path, locked while their process writes, removed afterwards."""

import errno
import fcntl
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.storage.errors import explain
from orchestrator.storage.store import Storage

STAGING_PREFIX = ".staging-"
"""Readers ignore names that start with this."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT)
_ABANDONED_AFTER_SECONDS = 60


@contextmanager
def staging_folder(storage: Storage, name: str) -> Iterator[Path]:
    """Yield an empty local folder to write artifact `name` into, for `publish` to take over.

    In a local store it is beside the final path, so that publishing is a rename; else it is in the system's
    temporary folder. Afterwards it is removed unless published, as are parents made for it that are empty. The
    staging folders of this artifact that killed processes left behind are removed first.
    """
    path = storage.local_path(name)
    if path is None:
        with (
            tempfile.TemporaryDirectory(prefix="gpt-orchestrator-") as folder,
            _explained(folder, _FULL, setting="TMPDIR"),
        ):
            yield Path(folder)
        return
    _remove_abandoned(path)
    missing = [parent for parent in path.parents if not parent.exists()]
    folder = path.parent / f"{STAGING_PREFIX}{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        with _explained(storage.url(name), (*_FULL, *_DENIED)):
            folder.mkdir(parents=True)
        with _locked(folder), _explained(storage.url(name), _FULL):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):
                parent.rmdir()


@contextmanager
def _explained(url: str, fixed_by_user: tuple[int, ...], setting: str = "storage.root") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in fixed_by_user:
            raise explain(error, "write", url, setting) from None
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems have no locks; on them no folder is ever taken for abandoned.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove the staging folders that killed processes left beside `path`: a lock ends with its process."""
    for folder in path.parent.glob(f"{STAGING_PREFIX}{path.name}-*"):
        with suppress(OSError):
            if _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    # A new folder is not locked yet: that happens a moment after it is made.
    if time.time() - folder.stat().st_mtime < _ABANDONED_AFTER_SECONDS:
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
