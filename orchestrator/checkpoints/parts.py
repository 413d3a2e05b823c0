"""A checkpoint's files, one per rank: stored with the digests of their chunks, and committed when all are stored.

Nothing here imports torch, so that the writer process starts fast and needs little memory.
"""

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from orchestrator.artifacts import artifact
from orchestrator.artifacts.digests import FileEntry, digest_bytes
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.errors import OrchestratorError, OtherCheckpointError, RefusedError, StorageError
from orchestrator.storage.errors import NotFoundError, explain
from orchestrator.storage.local import sync
from orchestrator.storage.store import Storage

FORMAT = 2
CHUNK_BYTES = 8 * 2**20
"""Bytes that are read and verified together; a multiple of 8, so that no number spans two chunks."""
STATE = "state.json"

_NUM_READERS = 8
Shapes = dict[str, list[int]]
"""Shape of each parameter."""
Index = dict[str, dict[str, list[tuple[int, int, str, int]]]]
"""parameter -> kind -> (start, stop, file, offset of its first byte in the file), in order of start."""
EncodedRanges = dict[str, dict[str, tuple[int, str]]]
"""parameter -> kind -> (first start, the ranges as JSON without the outer brackets)."""


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
    def record(self) -> str:
        """Its record's name below `folder`."""
        return f"rank_{self.rank:05d}.json"

    @property
    def folder(self) -> str:
        """Folder of the records of all ranks until the commit, relative to the storage root."""
        return f"{self.checkpoint}/parts-{self.save_id}"


def file_of(rank: int, save_id: str) -> str:
    """Return the name of a rank's file in a save."""
    return f"rank_{rank:05d}-{save_id}.safetensors"


def store_part(storage: Storage, part: Part, pieces: Iterable[memoryview], image: Path | None = None) -> None:
    """Store a rank's file, then a record of it.

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
    ranges = encoded_ranges(part.index)
    record = {"file": part.file, "entry": asdict(digests.entry), "chunks": digests.chunks, "ranges": ranges}
    storage.write_bytes(f"{part.folder}/{part.record}", json.dumps(record).encode())


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
        StorageError: the folder of the records was removed, so that nothing more would come.
    """
    records = storage.list(part.folder)
    if part.record not in records:
        raise removed_meanwhile(storage, part)
    return len(records) == part.world_size


def removed_meanwhile(storage: Storage, part: Part) -> StorageError:
    """Return the error for records that somebody has removed, so that this save cannot be committed."""
    return StorageError(f"{storage.url(part.folder)} was removed while the checkpoint was written")


def commit_parts(storage: Storage, part: Part, state: str, shapes: dict[str, list[int]], attempt: Attempt) -> None:
    """Commit a save once every rank has stored its file.

    Args:
        part: Any rank's part of the save.
        state: Content of `state.json`.

    Raises:
        LeaseLostError: another driver has taken over the run; nothing is committed.
        StorageError: a record was removed.
    """
    attempt.check(storage)
    files: dict[str, FileEntry] = {}
    chunks: dict[str, list[str]] = {}
    fragments = MergedRanges()
    for record in _records(storage, part):
        files[record["file"]] = FileEntry(**record["entry"])
        chunks[record["file"]] = record["chunks"]
        fragments.add(record["ranges"])
    storage.write_bytes(f"{part.checkpoint}/{STATE}", state.encode())
    files[STATE] = digest_bytes(state.encode())
    fields = {"kind": "checkpoint", "format": FORMAT, "chunk_bytes": CHUNK_BYTES, "chunks": chunks, "shapes": shapes}
    encoded = {name: json.dumps(value).encode() for name, value in {**fields, "files": artifact.listed(files)}.items()}
    artifact.write_manifest(storage, part.checkpoint, _object({**encoded, "fragments": fragments.json()}, b"\n"))
    attempt.check(storage)
    artifact.write_commit(storage, part.checkpoint)
    with suppress(OrchestratorError):  # the records are not needed any more
        storage.remove(part.folder)


def _records(storage: Storage, part: Part) -> Iterator[dict[str, Any]]:
    """Yield the record of each rank in order, read side by side; none of them is kept."""
    names = (f"{part.folder}/rank_{rank:05d}.json" for rank in range(part.world_size))
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        try:
            yield from map(json.loads, pool.map(storage.read_bytes, names))
        except NotFoundError:
            raise removed_meanwhile(storage, part) from None


def encoded_ranges(index: Index) -> EncodedRanges:
    """Return a rank's ranges as JSON text, which each rank makes of its own: rank 0 only joins the texts of all."""
    return {
        parameter: {kind: (min(ranges)[0], json.dumps(sorted(ranges))[1:-1]) for kind, ranges in kinds.items()}
        for parameter, kinds in index.items()
    }


class MergedRanges:
    """The ranges of all ranks as JSON text, in order of their starts.

    A checkpoint of 10,000 workers has millions of ranges under ZeRO-3. As Python objects they take gigabytes and
    minutes, most of them of the garbage collector.
    """

    def __init__(self) -> None:
        self._texts: dict[str, dict[str, bytearray]] = {}
        self._newest_starts: dict[tuple[str, str], int] = {}
        self._unordered: set[tuple[str, str]] = set()

    def add(self, ranges: EncodedRanges) -> None:
        """Append the ranges of one rank."""
        for parameter, kinds in ranges.items():
            texts = self._texts.setdefault(parameter, {})
            for kind, (start, text) in kinds.items():
                key = parameter, kind
                if start < self._newest_starts.get(key, 0):
                    self._unordered.add(key)
                self._newest_starts[key] = start
                if kind in texts:
                    texts[kind] += b", "
                texts.setdefault(kind, bytearray()).extend(text.encode())

    def json(self) -> bytes:
        """Return the index of all files."""
        return _object({parameter: _object(self._lists(parameter)) for parameter in self._texts})

    def _lists(self, parameter: str) -> dict[str, bytes]:
        lists = {kind: b"[" + text + b"]" for kind, text in self._texts[parameter].items()}
        for kind in lists.keys() & {kind for name, kind in self._unordered if name == parameter}:
            lists[kind] = json.dumps(sorted(json.loads(lists[kind]))).encode()
        return lists


def _object(fields: Mapping[str, bytes], between: bytes = b"") -> bytes:
    """Return a JSON object whose values are encoded already."""
    lines = b", ".join(between + json.dumps(name).encode() + b": " + value for name, value in fields.items())
    return b"{" + lines + between + b"}" + between


def check_format(manifest: dict[str, Any], url: str) -> None:
    """Raise OtherCheckpointError for a checkpoint of another format."""
    found, lacking = manifest.get("format"), {"chunks", "shapes", "fragments"} - manifest.keys()
    if found != FORMAT or manifest.get("chunk_bytes") != CHUNK_BYTES or lacking:
        raise other_version(f"{url}: a checkpoint of format {found}, and this version reads format {FORMAT}")


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
