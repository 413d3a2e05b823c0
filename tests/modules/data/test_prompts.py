"""Files of prompts, and what is wrong with a line."""

import gzip
import io
from dataclasses import dataclass
from typing import Any

import pytest
import zstandard

from modules.data.prompts import read_prompts
from modules.errors import InputError


@dataclass
class File:
    name: str
    content: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.content)

    def open(self) -> Any:
        return io.BytesIO(self.content)


def texts(name: str, content: bytes) -> list[tuple[str, str]]:
    return [(prompt.text, prompt.location) for prompt in read_prompts(File(name, content))]


def message(name: str, content: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_prompts(File(name, content))
    return str(caught.value)


@pytest.mark.parametrize(("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)])
def test_a_line_of_text_is_a_prompt(ending: str, pack: Any) -> None:
    content = "\ufeffone\r\n  two \nthree\u2028still three\n four".encode()
    assert texts(f"a.TXT{ending}", pack(content)) == [
        ("one", f"a.TXT{ending}:1"),
        ("  two ", f"a.TXT{ending}:2"),
        ("three\u2028still three", f"a.TXT{ending}:3"),
        (" four", f"a.TXT{ending}:4"),
    ]


def test_a_row_has_its_prompt_in_a_field() -> None:
    content = b'{"prompt": "one\\ntwo", "id": 7}\n\n{"id": 8, "prompt": ""}\n'
    assert texts("a.jsonl", content) == [("one\ntwo", "a.jsonl:1"), ("", "a.jsonl:3")]


def test_every_bad_line_is_named_with_its_reason() -> None:
    rows = [
        '{"prompt": "good"}',
        '{"text": "x"}',
        '{"prompt": null}',
        '["prompt"]',
        "nope",
        '{"prompt": "a", "prompt": "b"}',
        '{"prompt": "\\ud800"}',
        "[" * 100_000,
        '{"prompt": ' + "9" * 5000 + "}",
    ]
    lines = message("a.jsonl", "\n".join(rows).encode()).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"a.jsonl:{number}" for number in range(2, 10)]
    for line, part in zip(
        lines, ["must be like", "must be", "must be", "not JSON", "two fields", "half"], strict=False
    ):
        assert part in line
    assert message("a.txt", b"a\n\nb\n\r\n") == "\n".join(
        f'a.txt:{number}: is empty; remove the line, or write {{"prompt": ""}} in a .jsonl' for number in (2, 4)
    )


def test_of_many_bad_lines_the_first_are_named() -> None:
    lines = message("a.jsonl", b"{}\n" * 500).splitlines()
    assert (len(lines), lines[-1]) == (21, "… and 480 more")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.txt", b"abc\n\xff\n", "a.txt: byte 4 (0xff) is not UTF-8"),
        ("a.jsonl", b"\n\n", "a.jsonl: has no prompt"),
        ("a.txt.gz", gzip.compress(b"abc" * 1000, mtime=0)[:-9], "a.txt.gz: damaged compressed data"),
        ("a.txt.gz", b"abc", "a.txt.gz: damaged compressed data"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(name: str, content: bytes, part: str) -> None:
    assert part in message(name, content)
