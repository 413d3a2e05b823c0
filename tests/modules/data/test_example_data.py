"""Prepared examples are read as they were written, each once in a pack, with its targets counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import model_files

from modules.data.document_rows import Place
from modules.data.example_data import ExampleData, ExampleSplit, write_examples
from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.rows import Row
from modules.errors import InputError
from modules.tasks.task import Example

LENGTH = 12
A = Row({}, "a.jsonl:1")


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return model_files("gpt2", eos_token="<|endoftext|>")


def examples(number: int) -> list[Example]:
    """Return examples of lengths 2 to LENGTH; the last half of each is predicted."""
    lengths = [2 + index * 5 % (LENGTH - 1) for index in range(number)]
    return [
        Example(list(range(index, index + n)), [place >= n - n // 2 for place in range(n)], None, n)
        for index, n in enumerate(lengths)
    ]


def written(folder: Path, files: dict[str, bytes], made: Any, labels: tuple[str, ...] = ()) -> ExampleData:
    write_examples(folder, made, load_pretrained(files, "model"), files, labels, LENGTH, {"task": {"name": "any"}})
    return ExampleData.open(folder)


def tokens_of(split: ExampleSplit, example: int) -> list[int]:
    return split.tokens[split.offsets[example] : split.offsets[example + 1]].tolist()


def test_examples_are_read_as_they_were_written(tmp_path: Path, files: dict[str, bytes]) -> None:
    made = examples(30)
    data = written(tmp_path, files, (("val" if n % 3 else "train", e, A) for n, e in enumerate(made)))
    for split, expected in (("train", made[::3]), ("val", [e for n, e in enumerate(made) if n % 3])):
        found = data.splits[split]  # type: ignore[index]
        assert [tokens_of(found, n) for n in range(len(expected))] == [example.ids for example in expected]
        assert found.is_target is not None
        assert found.is_target.tolist() == [flag for example in expected for flag in example.is_target]
        assert found.num_bytes is not None
        assert found.num_bytes.tolist() == [example.num_bytes for example in expected]
    assert len(data.splits["test"].offsets) == 1
    assert data.tokenizer.end_token == "<|endoftext|>"


def test_each_example_is_in_one_pack_which_is_not_too_long(tmp_path: Path, files: dict[str, bytes]) -> None:
    made = examples(40)
    train = written(tmp_path, files, (("train", example, A) for example in made)).splits["train"]
    assert sorted(train.order.tolist()) == list(range(40))
    packs = [train.order[a:b].tolist() for a, b in zip(train.starts[:-1], train.starts[1:], strict=True)]
    assert [sum(len(made[n].ids) for n in pack) for pack in packs] == train.pack_tokens.tolist()
    assert max(train.pack_tokens) <= LENGTH
    assert [sum(sum(made[n].is_target) for n in pack) for pack in packs] == train.pack_targets.tolist()


def test_held_out_examples_keep_their_order(tmp_path: Path, files: dict[str, bytes]) -> None:
    made = [("train", examples(1)[0], A), *(("val", example, A) for example in examples(20))]
    assert written(tmp_path, files, made).splits["val"].order.tolist() == list(range(20))


def test_every_labelled_example_is_a_pack(tmp_path: Path, files: dict[str, bytes]) -> None:
    made = [("train", example._replace(is_target=[], label=n % 2), A) for n, example in enumerate(examples(7))]
    data = written(tmp_path, files, made, ("no", "yes"))
    train = data.splits["train"]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert (train.num_packs, train.pack_targets.tolist()) == (7, [1] * 7)
    assert np.array_equal(train.order, np.arange(7))
    assert data.labels == ("no", "yes")


def test_training_split_without_examples_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="training split has no example"):
        written(tmp_path, files, (("test", example, A) for example in examples(3)))


def test_place_of_each_example_is_kept(tmp_path: Path, files: dict[str, bytes]) -> None:
    rows = [Row({}, f"a.jsonl:{n}", place=Place(n // 2, 10 * n)) for n in range(1, 4)]
    written(tmp_path, files, (("train", example, row) for example, row in zip(examples(3), rows, strict=True)))
    assert (tmp_path / "train_places.txt").read_text() == "a.jsonl:1\na.jsonl:2\na.jsonl:3\n"
    places = np.fromfile(tmp_path / "train_example_rows.bin", "<i8").reshape(-1, 2)
    assert places.tolist() == [[0, 10], [1, 20], [1, 30]]
