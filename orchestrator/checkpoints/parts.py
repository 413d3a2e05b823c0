"""A checkpoint's files, one per rank: stored with the digests of their chunks, and committed when all are stored.

Nothing here imports torch, so that the writer process starts fast and needs little memory.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from orchestrator.artifacts import artifact
from orchestrator.artifacts.digests import FileEntry, digest_bytes
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.distributed.layout import Layout
from orchestrator.errors import OrchestratorError, OtherCheckpointError, RefusedError, StorageError
from orchestrator.storage.errors import explain
from orchestrator.storage.local import sync
from orchestrator.storage.store import Storage

FORMAT, WHOLE_INDEX_FORMAT = 3, 2
"""The format that is written, and an earlier one that is read, too: its manifest holds the index of all files."""
CHUNK_BYTES = 2**18
"""Bytes that are verified together; a multiple of 8, so that no number spans two chunks. A worker of another number of
workers needs short ranges of each file, and reads whole chunks for them."""
STATE = "state.json"
DIGEST_CHARACTERS = 16
"""Of a chunk's digest."""

Shapes = dict[str, list[int]]
"""Shape of each parameter."""
Index = dict[str, dict[str, list[tuple[int, int, int]]]]
"""parameter -> kind -> (start, stop, offset of its first byte in the file)."""


@dataclass(frozen=True)
class Part:
    """One rank's part of one save."""

    checkpoint: str
    """Relative to the storage root."""
    save_id: str
    """Distinguishes the files of this save from those of an earlier attempt at the same step."""
    rank: int
    world_size: int
    index: Index
    """The ranges in its file."""

    @property
    def file(self) -> str:
        """Its file's name below the checkpoint."""
        return file_of(self.rank, self.save_id)

    @property
    def folder(self) -> str:
        """Folder of the indexes of all ranks, relative to the storage root."""
        return f"{self.checkpoint}/{folder_of(self.save_id)}"


def file_of(rank: int, save_id: str) -> str:
    """Return the name of a rank's file in a save."""
    return f"rank_{rank:05d}-{save_id}.safetensors"


def folder_of(save_id: str) -> str:
    """Return the name of the folder of a save's indexes."""
    return f"parts-{save_id}"


@dataclass(frozen=True)
class StoredPart:
    """What a rank has stored, which the name of its index says: a listing tells of all ranks, and none is read."""

    rank: int
    file: FileEntry
    index: FileEntry

    @property
    def name(self) -> str:
        """The name of the index within its folder."""
        entries = (f"{entry.num_bytes}-{entry.xxh3_128}" for entry in (self.file, self.index))
        return f"rank_{self.rank:05d}-{'-'.join(entries)}.json"

    @classmethod
    def of(cls, name: str) -> "StoredPart | None":
        """Return what the name of an index says; None for another file."""
        found = _INDEX_NAME.fullmatch(name)
        if found is None:
            return None
        rank, num_bytes, digest, index_bytes, index_digest = found.groups()
        return cls(int(rank), FileEntry(int(num_bytes), digest), FileEntry(int(index_bytes), index_digest))


_INDEX_NAME = re.compile(r"rank_(\d{5,})-(\d+)-([0-9a-f]{32})-(\d+)-([0-9a-f]{32})\.json")


def store_part(storage: Storage, part: Part, pieces: Iterable[memoryview], image: Path | None = None) -> None:
    """Store a rank's file, then its index.

    Args:
        pieces: The bytes of the file.
        image: A local file of the same bytes, which is uploaded to a remote store.

    Raises:
        StorageError: the store cannot be written; nothing that a reader would use is left there.
    """
    digests = ChunkDigests()
    name = f"{part.checkpoint}/{part.file}"
    target = storage.local_path(name)
    try:
        if target is not None:
            _write(target, digests.of(pieces))
        elif image is not None:
            for _ in digests.of(pieces):
                pass
            storage.upload(image, name)
        else:
            _write_and_upload(storage, name, digests.of(pieces))
    except OSError as error:
        raise explain(error, "write", storage.url(name)) from None
    index = json.dumps({"ranges": part.index, "chunks": "".join(digests.chunks)}, separators=(",", ":")).encode()
    stored = StoredPart(part.rank, digests.entry, digest_bytes(index))
    storage.write_bytes(f"{part.folder}/{stored.name}", index)


def _write(path: Path, pieces: Iterable[memoryview]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "wb", buffering=0) as file:
            for piece in pieces:
                while piece:
                    piece = piece[file.write(piece) :]
        sync(path)
    except OSError:
        # frees the space on a full disk
        path.unlink(missing_ok=True)
        raise


def _write_and_upload(storage: Storage, name: str, pieces: Iterable[memoryview]) -> None:
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as staging:
        path = Path(staging) / "part"
        _write(path, pieces)
        storage.upload(path, name)


class ChunkDigests:
    """Digests of a file and of each of its chunks, computed while the bytes pass through."""

    def __init__(self) -> None:
        self._whole, self._chunk = xxhash.xxh3_128(), xxhash.xxh3_64()
        self._num_bytes = 0
        self._chunks: list[str] = []

    def of(self, pieces: Iterable[memoryview]) -> Iterator[memoryview]:
        """Yield the pieces unchanged, and update the digests with each."""
        for piece in pieces:
            self._whole.update(piece)
            self._cut(piece)
            yield piece

    def _cut(self, piece: memoryview) -> None:
        while piece:
            room = CHUNK_BYTES - self._num_bytes % CHUNK_BYTES
            self._chunk.update(piece[:room])
            self._num_bytes += len(piece[:room])
            piece = piece[room:]
            if self._num_bytes % CHUNK_BYTES == 0:
                self._chunks.append(self._chunk.hexdigest())
                self._chunk.reset()

    @property
    def entry(self) -> FileEntry:
        """The file's size and digest, as an artifact's manifest lists it."""
        return FileEntry(self._num_bytes, self._whole.hexdigest())

    @property
    def chunks(self) -> list[str]:
        """The digest of each chunk; the last one may be short."""
        rest = [self._chunk.hexdigest()] if self._num_bytes % CHUNK_BYTES else []
        return [*self._chunks, *rest]


def error_of(action: Callable[[], Any]) -> StorageError | None:
    """Return the error with which a part of a save failed, as one of the two kinds that pass, or do not pass."""
    try:
        action()
    except (OrchestratorError, OSError) as error:
        refused = isinstance(error, OrchestratorError) and error.is_final
        return RefusedError(str(error)) if refused else StorageError(str(error))
    return None


def are_all_stored(storage: Storage, part: Part) -> bool:
    """Whether every rank has stored its file of the save that `part` belongs to; that of `part` itself is stored.

    Raises:
        StorageError: the folder of the indexes was removed, so that nothing more would come.
    """
    ranks = {found.rank for name in storage.list(part.folder) if (found := StoredPart.of(name))}
    if part.rank not in ranks:
        raise removed_meanwhile(storage, part)
    return len(ranks) == part.world_size


def removed_meanwhile(storage: Storage, part: Part) -> StorageError:
    """Return the error for indexes that somebody has removed, so that this save cannot be committed."""
    return StorageError(f"{storage.url(part.folder)} was removed while the checkpoint was written")


def commit_parts(storage: Storage, part: Part, state: str, shapes: Shapes, layout: Layout, attempt: Attempt) -> None:
    """Commit a save once every rank has stored its file.

    Args:
        part: Any rank's part of the save.
        state: Content of `state.json`.
        layout: Which rank's file holds which elements.

    Raises:
        LeaseLostError: another driver has taken over the run; nothing is committed.
        StorageError: a rank's file or its index was removed.
    """
    attempt.check(storage)
    files = _stored_files(storage, part)
    storage.write_bytes(f"{part.checkpoint}/{STATE}", state.encode())
    files[STATE] = digest_bytes(state.encode())
    fields = {"kind": "checkpoint", "format": FORMAT, "chunk_bytes": CHUNK_BYTES, "world_size": part.world_size}
    what = {**fields, "layout": [asdict(group) for group in layout], "shapes": shapes}
    manifest = {**what, "files": artifact.listed(files)}
    artifact.write_manifest(storage, part.checkpoint, (json.dumps(manifest) + "\n").encode())
    attempt.check(storage)
    artifact.write_commit(storage, part.checkpoint)


def _stored_files(storage: Storage, part: Part) -> dict[str, FileEntry]:
    """Return the files of all ranks and their indexes: the names of the indexes say all of it, so that none is read."""
    stored = [found for name in storage.list(part.folder) if (found := StoredPart.of(name))]
    if {one.rank for one in stored} != set(range(part.world_size)):
        raise removed_meanwhile(storage, part)
    return {
        **{file_of(one.rank, part.save_id): one.file for one in stored},
        **{f"{folder_of(part.save_id)}/{one.name}": one.index for one in stored},
    }


def check_format(manifest: dict[str, Any], url: str) -> None:
    """Raise OtherCheckpointError for a checkpoint of a format that is not read."""
    found: Any = manifest.get("format")
    fields = {"chunks", "shapes", "fragments"} if found == WHOLE_INDEX_FORMAT else {"world_size", "layout", "shapes"}
    chunk_bytes = {FORMAT: CHUNK_BYTES, WHOLE_INDEX_FORMAT: 8 * 2**20}.get(found)
    if chunk_bytes is None or manifest.get("chunk_bytes") != chunk_bytes or fields - manifest.keys():
        formats = f"{WHOLE_INDEX_FORMAT} and {FORMAT}"
        raise other_version(f"{url}: a checkpoint of format {found}, and this version reads formats {formats}")


def other_version(what: str) -> OtherCheckpointError:
    """Return the error for a checkpoint that another version of this program has written."""
    return OtherCheckpointError(
        f"{what}; it was left as it is: continue with the version that wrote it, or choose another run.name"
    )


def check_shapes(found: dict[str, list[int]], expected: dict[str, list[int]], url: str) -> None:
    """Raise OtherCheckpointError if a checkpoint's parameters are not the model's, before any of them is read."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            held, wanted = (f"with shape {of[name]}" if name in of else "not at all" for of in (found, expected))
            text = f"{url}: holds parameter {name} {held}; the model has it {wanted}; choose another run.name"
            raise OtherCheckpointError(text)
