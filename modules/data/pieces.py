"""Pieces of text on their way to the tokenizer: which split each belongs to, and how they are put into batches."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from modules.config import DataConfig
from modules.data.documents import Piece
from modules.data.encoding import Passage
from modules.data.joints import Joint, Joints
from modules.data.splits import Split, is_held_out
from modules.data.tokenizer import Tokenizer
from modules.data.trained_tokenizers import take_bytes

BATCH_BYTES = 2**20
"""Bytes of text that are tokenised at a time, which takes a fifth of a second."""
LONGEST_WHOLE_CHARS = 2**18
"""Up to this length, text in which no place for a cut is found stays whole; bounds memory."""


class Assigned(NamedTuple):
    """A piece, its size in UTF-8 bytes, and the split that it belongs to."""

    piece: Piece
    num_bytes: int
    split: Split
    before: Joint = Joint(0)
    """Where it follows another piece of its document, if the tokenizer needs to know."""
    after: Joint = Joint(0)
    """Where another piece follows it."""

    def passage(self, counted: Split | None) -> Passage:
        """Return what is encoded; the bytes of each token are counted in the split `counted`."""
        before, after = self.before, self.after
        return Passage(
            self.piece.text,
            before.lead,
            before.num_lead_tokens,
            after.trail,
            after.num_trail_tokens,
            counts_bytes=self.split == counted,
        )


def assigned(pieces: Iterator[tuple[Piece, int]], data: DataConfig, start: int, val_start: int) -> Iterator[Assigned]:
    """Yield each piece with its split.

    Args:
        pieces: Pieces with their bytes, from the beginning of a document on.
        data: What is held out.
        start: Bytes of text before the first piece.
        val_start: Byte of the whole text at which the held-out part begins, with `data.split=position`.
    """
    if data.val_fraction == 0:
        return (Assigned(piece, num_bytes, "train") for piece, num_bytes in pieces)
    if data.split == "document":
        return _by_document(pieces, data.val_fraction)
    return _by_position(pieces, start, val_start)


def _by_document(pieces: Iterator[tuple[Piece, int]], val_fraction: float) -> Iterator[Assigned]:
    """Split by the hash of a document's first piece: equal documents stay together, and none is held as a whole."""
    split: Split | None = None
    for piece, num_bytes in pieces:
        if split is None:
            split = "val" if is_held_out(piece.text.encode(), val_fraction) else "train"
        yield Assigned(piece, num_bytes, split)
        split = None if piece.ends_document else split


def _by_position(pieces: Iterator[tuple[Piece, int]], position: int, val_start: int) -> Iterator[Assigned]:
    for piece, num_bytes in pieces:
        if position < val_start < position + num_bytes:
            head = take_bytes(piece.text, val_start - position)
            tail = piece.text[len(head) :]
            yield Assigned(Piece(head, True, piece.place), len(head.encode()), "train")
            yield Assigned(Piece(tail, piece.ends_document, piece.place), len(tail.encode()), "val")
        else:
            yield Assigned(piece, num_bytes, "train" if position < val_start else "val")
        position += num_bytes


def first_bytes(pieces: Iterable[Piece], max_bytes: int | None) -> Iterator[tuple[Piece, int]]:
    """Yield pieces with their UTF-8 bytes, up to `max_bytes` of them."""
    remaining = max_bytes
    for piece in pieces:
        num_bytes = len(piece.text.encode())
        if remaining is not None and num_bytes >= remaining:
            text = take_bytes(piece.text, remaining)
            yield Piece(text, True, piece.place), len(text.encode())
            return
        yield piece, num_bytes
        remaining = None if remaining is None else remaining - num_bytes


def joined(items: Iterable[Assigned], tokenizer: Tokenizer) -> Iterator[Assigned]:
    """Move the cuts between the pieces of a document to where its tokens end, for tokenizers that need it."""
    if tokenizer.joins_at_words:
        yield from items
        return
    joints, last = Joints(tokenizer.serialised()), None
    for item in items:
        if last is not None and not last.piece.ends_document and last.split == item.split:
            joint = joints.joint(last.piece.text, item.piece.text)
            both = last.piece.text + item.piece.text
            if joint is None and len(both) <= LONGEST_WHOLE_CHARS:
                last = _with_text(item, both)._replace(before=last.before)
                continue
            joint = joint or Joint(len(last.piece.text))
            last = _with_text(last, both[: joint.place])._replace(after=joint)
            item = _with_text(item, both[joint.place :])._replace(before=joint)
        if last is not None:
            yield last
        last = item
    if last is not None:
        yield last


def _with_text(item: Assigned, text: str) -> Assigned:
    return item._replace(piece=item.piece._replace(text=text), num_bytes=len(text.encode()))


def batches(items: Iterable[Assigned]) -> Iterator[list[Assigned]]:
    """Yield batches of about BATCH_BYTES."""
    batch: list[Assigned] = []
    size = 0
    for item in items:
        batch.append(item)
        size += item.num_bytes
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
