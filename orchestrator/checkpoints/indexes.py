"""Where each range of a checkpoint lies: the indexes of those files that hold what is wanted, each read once."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, Protocol

from orchestrator.artifacts.artifact import file_entries
from orchestrator.artifacts.digests import digest_bytes
from orchestrator.checkpoints.parts import DIGEST_CHARACTERS, WHOLE_INDEX_FORMAT, StoredPart, file_of, other_version
from orchestrator.distributed.layout import Group, Holders
from orchestrator.errors import ArtifactError
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

_NUM_READERS = 16
Range = tuple[int, int, str, int]
"""First element, the one after the last, file, and the offset of its first byte in the file."""


class CheckpointIndex(Protocol):
    """Says where ranges lie, and the digests of chunks."""

    def open(self, wanted: Iterable[tuple[str, int, int]]) -> None:
        """Read what is not known yet about these ranges: parameter, first element, the one after the last."""
        ...

    def ranges(self, parameter: str, kind: str) -> Sequence[Range]:
        """Return where a parameter's ranges of one kind lie that were opened, in order of their starts."""
        ...

    def digests(self, file: str) -> Sequence[str]:
        """Return the digest of each chunk of a file with an opened range."""
        ...


def index_of(storage: Storage, name: str, manifest: Mapping[str, Any]) -> CheckpointIndex:
    """Return the index of the checkpoint with this manifest, of any format that is read."""
    if manifest["format"] == WHOLE_INDEX_FORMAT:
        return _WholeIndex(manifest)
    return _IndexFiles(storage, name, manifest)


class _WholeIndex:
    """The index in a manifest of the earlier format: parameters times kinds times ranks."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self._fragments, self._chunks = manifest["fragments"], manifest["chunks"]

    def open(self, wanted: Iterable[tuple[str, int, int]]) -> None:
        """Nothing to read."""

    def ranges(self, parameter: str, kind: str) -> Sequence[Range]:
        return self._fragments.get(parameter, {}).get(kind, ())

    def digests(self, file: str) -> Sequence[str]:
        return self._chunks[file]


class _IndexFiles:
    """An index for each rank's file, whose name the manifest lists."""

    def __init__(self, storage: Storage, name: str, manifest: Mapping[str, Any]) -> None:
        self._storage, self._name = storage, name
        try:
            layout = [Group(**group) for group in manifest["layout"]]
        except TypeError as error:
            raise other_version(f"{storage.url(name)}: its layout has other fields ({error})") from None
        self._holders = Holders(layout, manifest["world_size"])
        self._files = {found.rank: (path, found) for path in file_entries(manifest) if (found := _stored_part(path))}
        self._opened: set[int] = set()
        self._ranges: dict[tuple[str, str], list[Range]] = defaultdict(list)
        self._digests: dict[str, list[str]] = {}

    def open(self, wanted: Iterable[tuple[str, int, int]]) -> None:
        needed = {rank for place in wanted for rank in self._holders.of(*place)} & self._files.keys()
        new = sorted(needed - self._opened)
        if not new:
            return
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            for rank, index in zip(new, pool.map(self._read, new), strict=True):
                self._add(self._file(rank), index)
        self._opened.update(new)
        for ranges in self._ranges.values():
            ranges.sort()

    def _file(self, rank: int) -> str:
        save_id = PurePosixPath(self._files[rank][0]).parent.name.removeprefix("parts-")
        return file_of(rank, save_id)

    def _read(self, rank: int) -> Mapping[str, Any]:
        path, stored = self._files[rank]
        url = self._storage.url(self._name)
        try:
            data = self._storage.read_bytes(f"{self._name}/{path}")
        except NotFoundError:
            raise ArtifactError(f"{url}: {path} is missing") from None
        stored.index.check(digest_bytes(data), f"{url}: {path}")
        return json.loads(data)

    def _add(self, file: str, index: Mapping[str, Any]) -> None:
        for parameter, kinds in index["ranges"].items():
            for kind, ranges in kinds.items():
                self._ranges[parameter, kind] += [(start, stop, file, offset) for start, stop, offset in ranges]
        text, width = index["chunks"], DIGEST_CHARACTERS
        self._digests[file] = [text[start : start + width] for start in range(0, len(text), width)]

    def ranges(self, parameter: str, kind: str) -> Sequence[Range]:
        return self._ranges.get((parameter, kind), ())

    def digests(self, file: str) -> Sequence[str]:
        return self._digests[file]


def _stored_part(path: str) -> StoredPart | None:
    folder, slash, name = path.partition("/")
    return StoredPart.of(name) if slash and folder.startswith("parts-") else None
