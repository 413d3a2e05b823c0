"""The documents of a text without what should not be learned: looked at once, and then read as often as asked."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from modules.config import DataConfig
from modules.cores import num_cores
from modules.data.document_rows import Place
from modules.data.documents import Piece, cut_pieces, read_documents
from modules.data.quality.findings import Findings
from modules.data.quality.inspection import REASONS, RECORD, Inspected, Inspector, InspectorSettings
from modules.data.quality.overlap import write_index
from modules.data.quality.sections import Section, sections
from modules.data.quality.similarity import NUM_HASHES, equal_to_earlier, open_rows, similar_to_earlier
from modules.data.row_files import read_rows
from modules.data.rows import Fields, TextField
from modules.data.source_files import PLAIN_TEXT_ENDINGS, SourceFile, checked_ending
from modules.data.worker_pool import WorkerPool
from modules.errors import InputError
from modules.quality_config import GROUPS

BATCH_BYTES = 2**20
"""Bytes of text that a process gets at a time."""
_RECORDS, _SIGNATURES = "records", "signatures"


class Others(NamedTuple):
    """The files of other texts that documents are compared with."""

    against: Sequence[SourceFile] = ()
    held_out: Sequence[SourceFile] = ()


NO_OTHERS = Others()


def is_on(data: DataConfig) -> bool:
    """Return whether anything is left out, cut out or replaced."""
    return any(getattr(data, name) != type(data).model_fields[name].default for name in GROUPS)


class Sieve:
    """Looks at all documents, then yields those that are kept, as often as asked.

    What it remembers of a document lies in files (217 bytes, and 512 more to find similar ones); in memory it takes 2
    bytes while documents are read, and at most 90 while they are compared.
    """

    def __init__(self, data: DataConfig, others: Others, read: Callable[[], Iterator[Piece]], folder: Path):
        """Read nothing yet.

        Args:
            data: What is left out, cut out and replaced, and how other texts are read.
            others: The files that `data` names for it.
            read: Returns all documents from the start, the same at each call.
            folder: An empty local folder for what is remembered; the caller removes it.
        """
        self._data = data
        self._others = others
        self._read = read
        self._folder = folder
        self._is_kept = self._is_changed = np.empty(0, dtype=bool)
        self._inspector: Inspector | None = None
        self._settings = InspectorSettings()

    def scan(self, progress: Callable[[int], None]) -> dict[str, Any]:
        """Look at all documents, and return what was found, as the manifest has it.

        Args:
            progress: Takes the bytes of text that have been looked at.

        Raises:
            InputError: No document is kept, a text cannot be used, or a package is missing.
        """
        findings = Findings()
        self._settings = self._with_index(findings)
        self._inspector = Inspector(self._settings)  # says here what is missing, and not in every process
        num_references = self._inspect_all(findings, progress)
        records = self._decided(findings)
        own = records[num_references:]
        self._is_kept, self._is_changed = own["reason"] == 0, np.any(own["changes"], axis=1)
        record = findings.record(records)
        if len(own) and not self._is_kept.any():
            counts = ", ".join(f"{name} {found['documents']:,}" for name, found in record["left_out"].items())
            raise InputError(f"data: its filters leave out all {len(own):,} documents ({counts}); relax them")
        return record

    def pieces(self) -> Iterator[Piece]:
        """Yield the documents that are kept, changed as they are learned, in pieces."""
        for (_, place), group in groupby(self._kept_texts(), key=itemgetter(0, 1)):
            yield from cut_pieces((text for _, _, text in group), place)

    def _kept_texts(self) -> Iterator[tuple[int, Place, str]]:
        """Yield each text with the number of the document that it belongs to, and the place where it was found.

        A gap in a document begins another.
        """
        assert self._inspector is not None, "scanned before"
        document, continues = 0, False
        for number, section in enumerate(sections(self._read())):
            if not self._is_kept[number]:
                continues = False
                continue
            texts, is_cut = [section.text], False
            if self._is_changed[number]:
                texts, is_cut = self._inspector.change(section.text)
            for place, text in enumerate(texts):
                document += place > 0 or is_cut or not (section.follows and continues)
                yield document, section.place, text
            continues = not is_cut

    def _with_index(self, findings: Findings) -> InspectorSettings:
        data, held_out = self._data, self._folder / "held_out"
        if self._others.held_out:
            held_out.mkdir()
            findings.num_short = write_index(self._held_out_texts(), data.decontaminate.ngram_words, held_out)
        return InspectorSettings(
            filters=data.filters,
            redact=data.redact,
            held_out=str(held_out) if self._others.held_out else None,
            signs=data.deduplicate.kind == "near",
        )

    def _held_out_texts(self) -> Iterator[str]:
        names = self._data.decontaminate.text_fields or (self._data.text_field,)
        fields = Fields(dict.fromkeys(names, "data.decontaminate.text_fields"))
        for file in self._others.held_out:
            if checked_ending(file.name) in PLAIN_TEXT_ENDINGS:
                yield from (section.text for section in self._documents(file))
                continue
            for row in read_rows(file, self._data, fields):
                yield from (value for value in row.values.values() if isinstance(value, str))

    def _documents(self, file: SourceFile) -> Iterator[Section]:
        return sections(read_documents(file, self._data, TextField(self._data)))

    def _inspect_all(self, findings: Findings, progress: Callable[[int], None]) -> int:
        """Write what is found in each reference and document; return the number of references."""
        settings, num_processes = self._settings, self._data.num_processes or num_cores()
        references = chain.from_iterable(map(self._documents, self._others.against))
        requests = chain(_requests(references, True), _requests(findings.counted(sections(self._read())), False))
        num_references = num_bytes = 0
        with ExitStack() as stack:
            records, signatures = (
                stack.enter_context((self._folder / name).open("wb")) for name in (_RECORDS, _SIGNATURES)
            )
            program = "from modules.data.quality.inspector_process import main; main()"
            arguments = [settings.model_dump_json()]
            pool = stack.enter_context(WorkerPool(program, arguments, lambda: Inspector(settings), num_processes))
            for inspected, are_references in pool.answers((request, request[1]) for request in requests):
                _write(inspected, records, signatures)
                num_references += len(inspected.records) * are_references
                num_bytes += int(inspected.records["num_bytes"].sum())
                for finding in inspected.findings:
                    findings.add(finding, _start(inspected.records[finding.document]))
                progress(num_bytes)
        return num_references

    def _decided(self, findings: Findings) -> np.ndarray:
        """Return the records of all documents, with those marked that repeat an earlier one."""
        records = open_rows(self._folder / _RECORDS, RECORD, mode="r+")
        settings = self._data.deduplicate
        if settings.kind is None:
            return records
        numbers = _compared(records)
        digests = np.array(records["digest"][numbers])
        _mark(records, numbers, _numbered(numbers, equal_to_earlier(digests)), "equal", findings)
        if settings.kind == "near":
            numbers = _compared(records)
            signatures = open_rows(self._folder / _SIGNATURES, np.dtype(np.uint32), (NUM_HASHES,))
            earlier = similar_to_earlier(signatures, numbers, settings.min_similarity)
            _mark(records, numbers, earlier, "similar", findings)
        return records


def _requests(found: Iterable[Section], are_references: bool) -> Iterator[tuple[list[str], bool]]:
    texts: list[str] = []
    size = 0
    for section in found:
        texts.append(section.text)
        size += len(section.text)
        if size >= BATCH_BYTES:
            yield texts, are_references
            texts, size = [], 0
    if texts:
        yield texts, are_references


def _write(inspected: Inspected, records: BinaryIO, signatures: BinaryIO) -> None:
    records.write(inspected.records.tobytes())
    if inspected.signatures is not None:
        signatures.write(inspected.signatures.tobytes())


def _compared(records: np.ndarray) -> np.ndarray:
    """Return the numbers of the documents that are kept so far, and of the references."""
    return np.flatnonzero((records["reason"] == 0) | (records["reason"] == REASONS.index("reference")))


def _numbered(numbers: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    return np.where(earlier < 0, -1, numbers[earlier])


def _mark(records: np.ndarray, numbers: np.ndarray, earlier: np.ndarray, name: str, findings: Findings) -> None:
    """Leave out the documents that have an earlier one like them; references stay what they are."""
    is_repeated = (earlier >= 0) & (records["reason"][numbers] == 0)
    repeated = numbers[is_repeated]
    for number, other in zip(repeated[:3].tolist(), earlier[is_repeated][:3].tolist(), strict=True):
        findings.add_repeated(name, _start(records[number]), _start(records[other]))
    records["reason"][repeated] = REASONS.index(name)


def _start(record: Any) -> str:
    return bytes(record["start"]).decode(errors="ignore")
