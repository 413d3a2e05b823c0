"""Text under tokenizers that others made: what GPT-2's do to it is assumed of none."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_tokenizers import CORPUS, HARD, KINDS, foreign
from pydantic import ValidationError
from tokenizers import Tokenizer as Reference
from tokenizers import models, pre_tokenizers

from modules.config import DataConfig, ObjectiveConfig, TokenizerConfig
from modules.data import documents
from modules.data.batches import BatchMaker, BatchSettings
from modules.data.prepare import prepare_tokens
from modules.data.shards import TokenData
from modules.data.stdlib import LocalFile
from modules.data.tokenizer import SPECIAL_TOKENS, Tokenizer, build_tokenizer
from modules.errors import InputError

LONG = tuple(text * 3 for text in CORPUS[:2])
CUT_WORDS = {"gpt2", "gpt2_holes"}
"""Kinds under which a long text without a space is cut within its only word, and may have other tokens than whole."""


def built(kind: str, **fields: Any) -> Tokenizer:
    config = TokenizerConfig(kind="file", path="given.json", **fields)
    return build_tokenizer(config, lambda: iter(()), foreign(kind))


def prepared(
    folder: Path, texts: tuple[str, ...], file: bytes, num_processes: int = 1, **fields: Any
) -> tuple[TokenData, list[str]]:
    """Return texts, a document each, as token data, and what is told about them."""
    rows = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
    (folder / "a.jsonl").write_bytes(rows)
    (folder / "out").mkdir()
    made = prepare_tokens(
        [LocalFile(str(folder), "a.jsonl", len(rows))],
        DataConfig(val_fraction=0, num_processes=num_processes),
        TokenizerConfig(kind="file", path="given.json", **fields),
        file,
        folder / "out",
        lambda *_: None,
    )
    return TokenData.open(folder / "out"), made.notes


def documents_of(data: TokenData) -> list[tuple[list[int], int | None]]:
    """Return the tokens of each document without its end token, and the bytes that all of them stand for."""
    stops = [*data.train.document_starts[1:].tolist(), len(data.train)]
    found = []
    for start, stop in zip(data.train.document_starts.tolist(), stops, strict=True):
        ids = np.empty((1, stop - start), dtype=np.int64)
        data.train.fill(np.array([start]), stop - start, ids)
        assert ids[0, -1] == data.tokenizer.end_of_text_id
        found.append((ids[0, :-1].tolist(), data.train.num_bytes(np.array([start]), stop - start)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_the_ids_of_the_whole_text_and_all_its_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARS", 300)
    texts = (*LONG, *HARD)
    data, _ = prepared(tmp_path, texts, foreign(kind))
    for text, (ids, num_bytes) in zip(texts, documents_of(data), strict=True):
        assert num_bytes == len(text.encode())
        if not (kind in CUT_WORDS and text == LONG[1]):
            assert ids == data.tokenizer.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_tokenizers_itself(kind: str) -> None:
    reference = Reference.from_str(foreign(kind).decode())
    for text in (*CORPUS, HARD[1]):
        assert built(kind).encode(text) == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_text_stay_text(kind: str) -> None:
    tokenizer = built(kind)
    added = json.loads(tokenizer.serialised())["added_tokens"]
    special = {token["id"]: token["content"] for token in added if token["special"]}
    unknown = {number for number, name in special.items() if name == tokenizer.unknown_token}
    for name in special.values():
        for text in (name, f"be {name} not", f"be{name}not{name}"):
            assert not set(tokenizer.encode(text)) & (set(special) - unknown)
    assert set(tokenizer.special_ids) <= set(special)


@pytest.mark.parametrize("kind", KINDS)
def test_own_tokens_have_ids_that_no_other_has(kind: str) -> None:
    tokenizer = built(kind)
    ids = Reference.from_str(tokenizer.serialised()).get_vocab(with_added_tokens=True)
    before = Reference.from_str(foreign(kind).decode()).get_vocab(with_added_tokens=True)
    assert len(set(ids.values())) == len(ids)
    assert before.items() <= ids.items()
    assert all(ids[name] > max(before.values()) for name in SPECIAL_TOKENS if name not in before)
    assert tokenizer.vocab_size == max(ids.values()) + 1


@pytest.mark.parametrize("kind", [*KINDS, "own_bpe", "own_char", "own_byte"])
def test_auto_tokenizer_gives_equal_ids(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    import transformers

    if kind.startswith("own_"):
        config = TokenizerConfig(kind=kind.removeprefix("own_"), vocab_size=300)
        tokenizer = build_tokenizer(config, lambda: iter([*CORPUS, *HARD]), None)
    else:
        tokenizer = built(kind)
    tokenizer.save_for_transformers(tmp_path, 4096)
    settings = {"model_type": "gpt2", "vocab_size": tokenizer.vocab_size, "bos_token_id": 0, "eos_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (*CORPUS, HARD[1]):
        ids = tokenizer.encode(text)
        assert auto(text).input_ids == ids
        assert auto.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    assert auto.eos_token_id == tokenizer.end_of_text_id


def test_a_special_token_after_the_prompt_is_decoded_with_it() -> None:
    tokenizer = built("llama2")
    prompt, more = tokenizer.encode("To be"), tokenizer.encode("or not")
    assert tokenizer.decode(more) == "or not"
    assert tokenizer.decode_after(prompt, more) == " or not"
    assert tokenizer.decode_after([tokenizer.end_of_text_id], more) == "or not"


def test_the_end_token_can_be_one_of_the_file(tmp_path: Path) -> None:
    data, _ = prepared(tmp_path, HARD, foreign("llama2"), end_token="</s>")
    assert data.tokenizer.end_of_text_id == 2
    assert data.tokenizer.id_of("<|endoftext|>") is None
    assert [ids for ids, _ in documents_of(data)] == [data.tokenizer.encode(text) for text in HARD]


def test_an_end_token_that_the_file_lacks_is_refused() -> None:
    with pytest.raises(InputError, match=r"tokenizer\.end_token=</S>: given\.json has no such token"):
        built("llama2", end_token="</S>")


@pytest.mark.parametrize("name", ["b", "be"])
def test_an_end_token_that_text_is_encoded_as_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"tokenizer.end_token={name}: text is encoded as this token"):
        built("llama2", end_token=name)


def lossy(model: Any, **parts: Any) -> bytes:
    tokenizer = Reference(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer.to_str().encode()


LETTERS = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (lossy(models.BPE(LETTERS, [])), "no token, and no unknown token, for 'é'"),
        (lossy(models.Unigram([(letter, -1.0) for letter in LETTERS], None, False)), "`unk_id` is missing"),
        (lossy(models.WordPiece({**LETTERS, "[UNK]": 26}, unk_token="[UNKNOWN]")), "Missing [UNK] token"),
    ],
    ids=["bpe", "unigram", "wordpiece"],
)
def test_a_tokenizer_that_cannot_hold_the_text_is_refused(
    file: bytes, reason: str, num_processes: int, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.path=given\.json: it cannot encode the text") as refused:
        prepared(tmp_path, ("a café",), file, num_processes)
    assert reason in str(refused.value)


def test_what_has_no_token_is_counted_and_told(tmp_path: Path) -> None:
    file = lossy(models.BPE({**LETTERS, "<unk>": 26}, [], unk_token="<unk>"))
    data, notes = prepared(tmp_path, ("a café — café",), file)
    assert notes == [
        "3 of 13 characters have no token and became <unk>: 'é' '—'",
        "the tokenizer's rules leave out 3 of 13 characters, such as spaces, line breaks or accents: "
        "its tokens do not give them back",
    ]
    assert documents_of(data)[0][1] == len("a café — café".encode())


def test_nothing_is_told_of_a_text_that_its_tokens_give_back(tmp_path: Path) -> None:
    assert prepared(tmp_path, (*CORPUS, *HARD), foreign("llama2"))[1] == []


def test_bytes_between_tokens_belong_to_the_next_one(tmp_path: Path) -> None:
    file = lossy(models.BPE({**LETTERS, "<unk>": 26}, [], unk_token="<unk>"))
    data, _ = prepared(tmp_path, ("ab  é c ",), file)
    each = [data.train.num_bytes(np.array([place]), 1) for place in range(len(data.train))]
    assert each == [1, 1, 4, 2, 1]


def test_a_token_for_more_bytes_than_can_be_written_passes_them_on(tmp_path: Path) -> None:
    file = lossy(models.BPE({**LETTERS, "<unk>": 26}, [], unk_token="<unk>"))
    text = "a" + " " * 16_000 + "b"
    data, _ = prepared(tmp_path, (text * 5,), file)
    assert documents_of(data)[0][1] == len(text) * 5


BEGINS = {"llama2": ("<s>", "</s>"), "llama3": ("<|begin|>", "<|end_of_text|>"), "wordpiece": ("[CLS]", "[SEP]")}


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("kind", BEGINS)
def test_a_begin_token_stands_once_before_each_document_and_for_no_bytes(
    kind: str, num_processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PIECE_CHARS", 300)
    begin, end = BEGINS[kind]
    texts = (*LONG, *HARD)
    data, _ = prepared(
        tmp_path, texts, foreign(kind), num_processes, begin_token=begin, end_token=end, added_tokens="none"
    )
    number = data.tokenizer.begin_id
    assert (data.tokenizer.begin_token, data.tokenizer.end_token) == (begin, end)
    for text, (ids, num_bytes) in zip(texts, documents_of(data), strict=True):
        assert ids == [number, *data.tokenizer.encode(text)] == data.tokenizer.prompt_ids(text)
        assert num_bytes == len(text.encode())
    starts = data.train.document_starts
    assert all(data.train.num_bytes(np.array([start]), 1) == 0 for start in starts)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "llama2"])
def test_a_prompt_begins_as_the_documents_did(kind: str) -> None:
    end = BEGINS.get(kind, ("", "<|endoftext|>"))[1]
    without = built(kind, end_token=end, added_tokens="none")
    assert without.prompt_ids("To be") == without.encode("To be")
    begun = built(kind, end_token=end, begin_token=end, added_tokens="none")
    assert begun.prompt_ids("To be") == [begun.end_of_text_id, *begun.encode("To be")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("added", ["mask", "none"])
def test_no_more_is_added_than_asked_for(kind: str, added: str) -> None:
    before = Reference.from_str(foreign(kind).decode()).get_vocab(with_added_tokens=True)
    end = next(name for name in ("</s>", "[SEP]", "<|end_of_text|>", "<|endoftext|>", "0") if name in before)
    if end == "0":
        with pytest.raises(InputError, match=rf"tokenizer\.added_tokens={added}: given\.json has no <\|endoftext\|>"):
            built(kind, added_tokens=added)
        return
    tokenizer = built(kind, end_token=end, added_tokens=added)
    new = {"<|mask|>": max(before.values()) + 1} if added == "mask" and "[MASK]" not in before else {}
    assert Reference.from_str(tokenizer.serialised()).get_vocab(with_added_tokens=True) == before | new
    assert tokenizer.mask_id == (before | new).get("[MASK]" if "[MASK]" in before else "<|mask|>")
    assert {tokenizer.end_of_text_id, *new.values()} <= set(tokenizer.special_ids)


def test_the_mask_token_of_a_file_is_kept_in_prepared_data(tmp_path: Path) -> None:
    data, _ = prepared(tmp_path, HARD, foreign("wordpiece"), mask_token="[UNK]", end_token="[SEP]")
    assert data.tokenizer.mask_token == "[UNK]"
    assert data.tokenizer.id_of("<|mask|>") is None
    assert data.tokenizer.id_of("<|pad|>") is not None


@pytest.mark.parametrize("field", ["begin_token", "mask_token"])
def test_a_token_that_the_file_lacks_or_that_is_in_text_is_refused_in_every_role(field: str) -> None:
    with pytest.raises(InputError, match=rf"tokenizer\.{field}=</S>: given\.json has no such token"):
        built("llama2", **{field: "</S>"})
    with pytest.raises(InputError, match=rf"tokenizer\.{field}=be: text is encoded as this token"):
        built("llama2", **{field: "be"})


@pytest.mark.parametrize("fields", [{"begin_token": "<s>"}, {"mask_token": "[MASK]"}, {"added_tokens": "none"}])
def test_tokens_of_a_file_need_a_file(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="needs kind=file"):
        TokenizerConfig(kind="byte", **fields)


def test_masks_need_a_mask_token(tmp_path: Path) -> None:
    data, _ = prepared(tmp_path, HARD, foreign("llama2"), end_token="</s>", added_tokens="none")
    settings = BatchSettings(8, 0, ObjectiveConfig(), with_masked=True)
    with pytest.raises(InputError, match=r"let tokenizer\.added_tokens=mask add one"):
        BatchMaker(data.train, data.tokenizer, settings)
