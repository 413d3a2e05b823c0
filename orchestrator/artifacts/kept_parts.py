"""Parts of an artifact in the making: hidden beside it until it is committed, so that a killed process loses none."""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from modules.data.part_store import RECORD, LocalParts, Note, PartStore, is_whole, noted, parsed_note
from modules.errors import InputError
from orchestrator.artifacts.artifact import is_committed
from orchestrator.errors import ArtifactError, OrchestratorError, UserError
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.local import locked
from orchestrator.storage.store import Storage

log = logging.getLogger(__name__)
PARTS_PREFIX = ".parts-"
"""Readers ignore names that start with this."""


class StoredParts:
    """Parts in a store that several machines reach. A part is there once its record is, which is written last."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder

    def note(self, name: str) -> Note | None:
        return self._read(f"{name}.json")

    def write_note(self, name: str, note: Note) -> None:
        self._storage.write_bytes(f"{self._folder}/{name}.json", noted(note))

    def find(self, name: str) -> Note | None:
        return self._read(f"{name}/{RECORD}")

    def count(self) -> int:
        return len(self._storage.list(self._folder, folders_only=True))

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="gpt-orchestrator-"))

    def keep(self, folder: Path, name: str, record: Note) -> None:
        place = f"{self._folder}/{name}"
        for file in record["files"]:
            self._storage.upload(folder / file, f"{place}/{file}")
        self._storage.write_bytes(f"{place}/{RECORD}", noted(record))
        shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def opened(self, name: str) -> Iterator[Path]:
        """Yield a local folder with the verified files of a part.

        Raises:
            ArtifactError: it is damaged; it is no longer found, so that the next attempt makes it again.
        """
        record, place = self.find(name), f"{self._folder}/{name}"
        with tempfile.TemporaryDirectory(prefix="gpt-orchestrator-") as folder:
            for file in record["files"] if record else ():
                self._storage.download(f"{place}/{file}", Path(folder) / file)
            if record is None or not is_whole(Path(folder), record):
                self._storage.remove(f"{place}/{RECORD}")
                raise ArtifactError(f"{self._storage.url(place)}: damaged; the same command makes it again")
            yield Path(folder)

    def _read(self, name: str) -> Note | None:
        try:
            return parsed_note(self._storage.read_bytes(f"{self._folder}/{name}"))
        except NotFoundError:
            return None


@contextmanager
def kept_parts(storage: Storage, name: str, staging: Path, *, also_after_mistakes: bool = False) -> Iterator[PartStore]:
    """Yield where the parts of artifact `name` are kept.

    They are removed when the block ends, also by a mistake of the user, which another text or other settings follow;
    after any other error they stay, and so after a kill. Several processes may make the same artifact at once: once
    one has committed it, an error in the block of another, whose parts it has removed, passes.

    Args:
        storage: Where the artifact will lie.
        name: Its name.
        staging: Its staging folder, in which parts are made, and kept if no other process could read them.
        also_after_mistakes: Keep them after mistakes, too, since a network that is away is one.
    """
    if not storage.is_shared:
        yield LocalParts(staging / "parts", staging)
        shutil.rmtree(staging / "parts", ignore_errors=True)
        return
    folder = _folder(name)
    place = storage.local_path(folder)
    try:
        with _in_use(place):
            yield StoredParts(storage, folder) if place is None else LocalParts(place, staging)
    except (UserError, InputError):
        if not also_after_mistakes:
            remove_parts(storage, name)
        raise
    except (OSError, OrchestratorError, RuntimeError):
        if not is_committed(storage, name):
            raise
    remove_parts(storage, name)


def remove_parts(storage: Storage, name: str) -> None:
    """Remove the parts of an artifact, unless another process on this machine uses them."""
    place = storage.local_path(_folder(name))
    if place is None:
        storage.remove(_folder(name))
        return
    if not place.exists():
        return
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # the process that uses them removes them
    except OSError:
        log.debug("%s has no locks", place)  # as some network file systems
    finally:
        os.close(descriptor)
    shutil.rmtree(place, ignore_errors=True)


def _folder(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(f"{PARTS_PREFIX}{path.name}"))


@contextmanager
def _in_use(place: Path | None) -> Iterator[None]:
    """Keep other processes of this machine from removing a local folder of parts."""
    if place is None:
        yield
        return
    place.mkdir(parents=True, exist_ok=True)
    with locked(place, shared=True):
        yield
