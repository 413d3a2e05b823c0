"""What filters leave of a text when it is prepared: documents, changes, counts, order, splits and tokenizer."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules.config import DataConfig, TokenizerConfig
from modules.data.prepare import Prepared, prepare_tokens, preview
from modules.data.quality import sections, sieve
from modules.data.quality.sieve import Others
from modules.data.shards import TokenData, TokenStream
from modules.data.stdlib import LocalFile
from modules.errors import InputError

GENERATOR = random.Random(5)
WORDS = [f"word{n}" for n in range(400)]


def prose(number: int, num_words: int = 80) -> str:
    return f"Number {number} is the start of this. " + " ".join(GENERATOR.choices(WORDS, k=num_words))


PROSE = [prose(number) for number in range(30)]
HELD_OUT = "sixteen words that stand together in a test set and should not be in any training document"
NEAR = PROSE[3].replace("word", "word", 1).replace("Number 3 is the start", "Number 3 was the start")
LEAKED = f"{prose(90)} {HELD_OUT} {prose(91)}"
MAILED = f"{prose(95)} Write to jane.doe@mail.example.org or john@mail.example.org today."
DOCUMENTS = [*PROSE[:10], "too short", PROSE[2], NEAR, LEAKED, MAILED, MAILED, "§§§ " * 20, *PROSE[10:]]
EVERYTHING: dict[str, Any] = {
    "filters": {"min_words": 4, "rules": ["symbols"]},
    "decontaminate": {"path": "given", "ngram_words": 13},
    "redact": {"kinds": ["email"]},
    "deduplicate": {"kind": "near", "min_similarity": 0.75, "against": "given"},
}


def file(folder: Path, name: str, texts: list[str]) -> LocalFile:
    content = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    return written(folder, name, content)


def written(folder: Path, name: str, content: bytes) -> LocalFile:
    (folder / name).write_bytes(content)
    return LocalFile(str(folder), name, len(content))


def others(folder: Path) -> Others:
    return Others(
        [file(folder, "earlier.jsonl", [PROSE[20], "§§§ §§§ §§§ §§§"])], [file(folder, "t.jsonl", [HELD_OUT])]
    )


def prepared(
    folder: Path, sources: list[LocalFile], given: Others | None = None, kind: Any = "byte", **data: Any
) -> tuple[TokenData, Prepared]:
    folder.mkdir()
    settings = DataConfig.model_validate({"val_fraction": 0, "num_processes": 1, **data})
    tokenizer = TokenizerConfig(kind=kind)
    made = prepare_tokens(sources, settings, tokenizer, None, folder, lambda *_: None, given or Others())
    return TokenData.open(folder), made


def documents(data: TokenData, stream: TokenStream | None = None) -> list[str]:
    stream = stream or data.train
    tokens = np.empty((1, len(stream)), dtype=np.int64)
    stream.fill(np.array([0]), len(stream), tokens)
    stops = [*stream.document_starts[1:], len(stream)]
    ranges = zip(stream.document_starts, stops, strict=True)
    return [data.tokenizer.decode(tokens[0][start : stop - 1].tolist()) for start, stop in ranges]


def test_each_filter_takes_its_documents_and_no_other_and_says_so(tmp_path: Path) -> None:
    data, made = prepared(tmp_path / "out", [file(tmp_path, "a.jsonl", DOCUMENTS)], others(tmp_path), **EVERYTHING)
    redacted = MAILED.replace("jane.doe@mail.example.org", "<EMAIL>").replace("john@mail.example.org", "<EMAIL>")
    kept = documents(data)
    pieces = [text for text in kept if text not in [*PROSE, redacted]]
    assert [text for text in kept if text not in pieces] == [*PROSE[:10], redacted, *PROSE[10:20], *PROSE[21:]]
    assert [LEAKED.startswith(pieces[0]), LEAKED.endswith(pieces[1]), len(pieces)] == [True, True, 2]
    record = made.filtered
    assert record is not None
    assert record["documents"] == {"read": 37, "kept": 31}
    assert record["bytes"]["read"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert record["bytes"]["kept"] == sum(len(text.encode()) for text in kept)
    counts = {name: found["documents"] for name, found in record["left_out"].items()}
    assert counts == {"length": 1, "symbols": 1, "equal": 3, "similar": 1}
    changed = {name: (found["documents"], found["places"]) for name, found in record["changed"].items()}
    assert changed == {"email": (1, 2), "held_out": (1, 5)}
    assert made.notes[0].startswith("kept 31 of 37 documents, ")
    assert not [line for line in [*made.notes, json.dumps(record)] if "jane.doe" in line]


def test_result_and_record_are_the_same_on_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sieve, "BATCH_BYTES", 2000)
    source, given = [file(tmp_path, "a.jsonl", DOCUMENTS)], others(tmp_path)
    made = [prepared(tmp_path / f"{n}", source, given, num_processes=n, **EVERYTHING)[1] for n in (1, 2)]
    assert made[0] == made[1]
    contents = [{path.name: path.read_bytes() for path in (tmp_path / f"{n}").iterdir()} for n in (1, 2)]
    assert contents[0] == contents[1]
    assert "train_00000.bin" in contents[0]  # and nothing of what was remembered
    assert not [name for name in contents[0] if "filters" in name]


def test_dry_run_says_what_preparing_does(tmp_path: Path) -> None:
    source, given = [file(tmp_path, "a.jsonl", DOCUMENTS)], others(tmp_path)
    settings = DataConfig.model_validate({"val_fraction": 0, "num_processes": 1, **EVERYTHING})
    assert preview(source, settings, given) == prepared(tmp_path / "out", source, given, **EVERYTHING)[1]
    nothing = preview(source, DataConfig(num_processes=1), Others())
    size = sum(len(text.encode()) for text in DOCUMENTS)
    assert nothing.notes == [f"kept 37 of 37 documents, {size:,} of {size:,} bytes of text"]


def test_texts_that_filters_keep_whole_are_prepared_as_without_filters(tmp_path: Path) -> None:
    long = "\n".join(prose(number, 900) for number in range(6))
    source = [written(tmp_path, "long.txt", long.encode()), file(tmp_path, "a.jsonl", PROSE)]
    for split, fraction in (("document", 0.3), ("position", 0.3)):
        settings: dict[str, Any] = {"split": split, "val_fraction": fraction}
        prepared(tmp_path / f"{split}_off", source, **settings)
        prepared(tmp_path / f"{split}_on", source, filters={"min_words": 2}, **settings)
        for path in (tmp_path / f"{split}_off").iterdir():
            assert path.read_bytes() == (tmp_path / f"{split}_on" / path.name).read_bytes()


def test_tokenizer_learns_from_what_is_kept_alone(tmp_path: Path) -> None:
    data, _ = prepared(
        tmp_path / "out",
        [file(tmp_path, "a.jsonl", [*PROSE[:4], "ψ ω", f"{PROSE[4]} JQZ@mail.example.org"])],
        kind="char",
        filters={"min_words": 3},
        redact={"kinds": ["email"]},
    )
    known = [letter for letter in "ψωJQZw" if data.tokenizer.id_of(letter) is not None]
    assert known == ["w"]


def test_similar_documents_are_on_no_two_sides_of_a_split(tmp_path: Path) -> None:
    twice = [text for number, text in enumerate(PROSE) for text in (text, text.replace("is the", "was the"))]
    settings: dict[str, Any] = {"val_fraction": 0.4, "deduplicate": {"kind": "near"}}
    data, _ = prepared(tmp_path / "out", [file(tmp_path, "a.jsonl", twice)], **settings)
    assert sorted([*documents(data), *documents(data, data.val)]) == sorted(PROSE)


def test_a_very_long_document_is_looked_at_in_sections_and_a_gap_ends_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "SECTION_CHARS", 2**14)
    chunks = [prose(number, 2500) for number in range(5)]
    odd = "§§§ " * 9000
    text = " ".join([*chunks[:2], odd, *chunks[2:]])
    source = [written(tmp_path, "long.txt", text.encode())]
    data, made = prepared(tmp_path / "out", source, filters={"rules": ["symbols"]})
    kept = documents(data)
    assert len(kept) == 2
    assert text.startswith(kept[0])
    assert text.endswith(kept[1])
    assert "§" * 3 + " " + "§" * 3 not in kept[0][:20_000] + kept[1][-20_000:]
    assert len(kept[0]) + len(kept[1]) > len(text) - len(odd) - 2 * 2**14
    assert made.filtered is not None
    assert made.filtered["left_out"]["symbols"]["documents"] > 0
    # one document, so all that were read but one are further sections of it
    assert made.filtered["further_sections"] == made.filtered["documents"]["read"] - 1 > 2
    assert any("were looked at in sections" in line for line in made.notes)


def test_only_the_first_bytes_of_the_text_are_looked_at(tmp_path: Path) -> None:
    source = [file(tmp_path, "a.jsonl", [*PROSE[:3], "short", *PROSE[3:]])]
    size = sum(len(text.encode()) for text in PROSE[:3]) + 5
    data, made = prepared(tmp_path / "out", source, filters={"min_words": 2}, max_bytes=size)
    assert documents(data) == PROSE[:3]
    assert made.filtered is not None
    assert made.filtered["bytes"] == {"read": size, "kept": size - 5}


def test_a_text_of_which_nothing_is_kept_is_refused_with_the_reasons(tmp_path: Path) -> None:
    source = [file(tmp_path, "a.jsonl", ["one", "two", "§§§ §§§ §§§"])]
    with pytest.raises(InputError, match=r"leave out all 3 documents \(length 2, symbols 1\); relax them"):
        prepared(tmp_path / "out", source, filters={"min_words": 2, "rules": ["symbols"]})
    assert list((tmp_path / "out").iterdir()) == []


def test_held_out_rows_are_read_by_their_own_fields_and_plain_text_as_a_whole(tmp_path: Path) -> None:
    rows = json.dumps({"question": HELD_OUT, "answer": "it is nine words long and stands in it"}).encode()
    held_out = [written(tmp_path, "t.jsonl", rows), written(tmp_path, "t.txt", f"{PROSE[7]}\n".encode())]
    texts = [LEAKED, f"{prose(1)} it is nine words long and stands in it {prose(2)}", PROSE[7], PROSE[8]]
    data, made = prepared(
        tmp_path / "out",
        [file(tmp_path, "a.jsonl", texts)],
        Others(held_out=held_out),
        decontaminate={"path": "given", "text_fields": ["question", "answer"]},
    )
    assert documents(data)[-1] == PROSE[8]
    assert made.filtered is not None
    assert made.filtered["changed"]["held_out"]["documents"] == 2
    assert made.filtered["left_out"]["held_out"]["documents"] == 1


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("filters", {"min_words": 5, "max_words": 4}),
        ("filters", {"min_language_probability": 0.2}),
        ("filters", {"languages": ["english"]}),
        ("filters", {"rules": ["nice"]}),
        ("decontaminate", {"ngram_words": 8}),
        ("decontaminate", {"text_fields": ["a"]}),
        ("redact", {"kinds": ["name"]}),
        ("redact", {"phone_regions": ["US"]}),
        ("deduplicate", {"kind": "exact", "min_similarity": 0.9}),
        ("deduplicate", {"against": ["a.txt"]}),
    ],
)
def test_settings_that_would_do_nothing_or_are_unknown_are_refused(group: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=group):
        DataConfig.model_validate({group: values})


def test_the_order_of_a_list_makes_no_other_setting() -> None:
    one = DataConfig.model_validate({"redact": {"kinds": ["ip", "email", "ip"]}, "filters": {"rules": "symbols"}})
    other = DataConfig.model_validate({"redact": {"kinds": ["email", "ip"]}, "filters": {"rules": ["symbols"]}})
    assert one == other


def test_sections_on_either_side_of_one_with_a_cut_are_documents_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sections, "SECTION_CHARS", 2**13)
    chunks = [prose(number, 1800) for number in range(3)]  # 14,000 characters each, so a section is a piece
    text = f"{chunks[0]} {chunks[1]} {HELD_OUT} {chunks[1]} {chunks[2]}"
    held_out = [file(tmp_path, "t.jsonl", [HELD_OUT])]
    source = [written(tmp_path, "long.txt", text.encode())]
    data, _ = prepared(tmp_path / "out", source, Others(held_out=held_out), decontaminate={"path": "given"})
    kept = documents(data)
    assert len(kept) == 4
    assert text.startswith(kept[0] + kept[1])
    assert text.endswith(kept[2] + kept[3])
