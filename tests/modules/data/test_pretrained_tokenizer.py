"""Tokenizers that came with a model: their tokens, what they put around a text, and how they are saved."""

import json
from pathlib import Path
from typing import Any

import pytest
from foreign_tokenizers import CORPUS, HARD, KINDS, foreign
from model_files import as_json, model_files, written
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Reference

from modules.data.pretrained_tokenizer import load_pretrained
from modules.errors import InputError

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def vocabulary(file: bytes | str) -> dict[str, int]:
    text = file if isinstance(file, str) else file.decode()
    return Reference.from_str(text).get_vocab(with_added_tokens=True)


def opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what `transformers` makes of a folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_no_token_of_ours_is_added_and_no_id_changes(kind: str) -> None:
    tokenizer = load_pretrained({"tokenizer.json": foreign(kind)}, "model.path=m")
    before, reference = vocabulary(foreign(kind)), Reference.from_str(foreign(kind).decode())
    assert vocabulary(tokenizer.serialised()) == before
    assert tokenizer.vocab_size == max(before.values()) + 1
    for text in (*CORPUS, HARD[1]):
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": {"eos_token_id": 2}}, (2,)),
        ({"config.json": {"eos_token_id": [2, 1]}}, (2, 1)),
        ({"generation_config.json": {"eos_token_id": [1, 2]}}, (1, 2)),
        ({"config.json": {"eos_token_id": 2}, "generation_config.json": {"eos_token_id": [1, 2]}}, (2, 1)),
        ({"config.json": {"eos_token_id": None}}, (2,)),
        ({"config.json": {"eos_token_id": True}}, (2,)),
        ({"config.json": {"eos_token_id": 99999}}, (2,)),
        ({"config.json": {"eos_token_id": [2, 20], "vocab_size": 10}}, (2,)),
        ({}, (2,)),
    ],
)
def test_a_model_stops_at_every_end_token_of_its_files(
    files: dict[str, dict[str, Any]], expected: tuple[int, ...]
) -> None:
    given = model_files("llama2", **NAMES) | {name: as_json(content) for name, content in files.items()}
    tokenizer = load_pretrained(given, "model.path=m")
    assert tokenizer.end_ids == expected
    assert tokenizer.end_of_text_id == expected[0]


def test_documents_end_with_the_end_token_that_is_in_no_text() -> None:
    letter = vocabulary(foreign("llama2"))["b"]
    config = as_json({"eos_token_id": [letter, 2]})
    tokenizer = load_pretrained(model_files("llama2") | {"config.json": config}, "model.path=m")
    assert (tokenizer.end_ids, tokenizer.end_token) == ((letter, 2), "</s>")
    alone = load_pretrained(model_files("llama2") | {"config.json": as_json({"eos_token_id": letter})}, "model.path=m")
    assert (alone.end_ids, alone.end_token) == ((letter,), None)
    assert alone.decode(alone.encode("obbo")) == "obbo"
    with pytest.raises(InputError, match=r"name one in tokenizer\.end_token"):
        alone.end_of_text_id  # noqa: B018


@pytest.mark.parametrize(
    ("kind", "settings", "mask", "padding"),
    [
        ("wordpiece", {}, "[MASK]", "[PAD]"),
        ("wordpiece", {"mask_token": "[UNK]", "pad_token": {"content": "[SEP]"}}, "[UNK]", "[SEP]"),
        ("llama2", {"pad_token": "</s>"}, None, "</s>"),
        ("llama2", {"mask_token": "<none such>", "pad_token": None}, None, None),
    ],
)
def test_mask_and_padding_are_its_own_or_none(
    kind: str, settings: dict[str, Any], mask: str | None, padding: str | None
) -> None:
    tokenizer = load_pretrained(model_files(kind, **settings), "model.path=m")
    assert (tokenizer.mask_token, tokenizer.padding_token) == (mask, padding)
    ids = vocabulary(foreign(kind))
    assert tokenizer.mask_id == (None if mask is None else ids[mask])
    assert tokenizer.padding_id == (None if padding is None else ids[padding])


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_token_is_added_after_the_highest_id_where_there_is_none(kind: str) -> None:
    tokenizer = load_pretrained({"tokenizer.json": foreign(kind)}, "model.path=m", with_mask=True)
    before = vocabulary(foreign(kind))
    added = {} if "[MASK]" in before else {"<|mask|>": max(before.values()) + 1}
    assert vocabulary(tokenizer.serialised()) == before | added
    assert tokenizer.mask_id == (before | added)[tokenizer.mask_token or ""]
    assert tokenizer.mask_id in tokenizer.special_ids


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "model.path=m: no tokenizer.json beside the weights"),
        ({"tokenizer.json": b"{}"}, "model.path=m/tokenizer.json: not a tokenizer.json"),
        (
            {"tokenizer.json": foreign("gpt2"), "tokenizer_config.json": b"{"},
            "model.path=m/tokenizer_config.json: not readable as JSON",
        ),
        ({"tokenizer.json": foreign("gpt2"), "config.json": b"[1]"}, "model.path=m/config.json: holds no JSON object"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(InputError) as refused:
        load_pretrained(files, "model.path=m")
    assert str(refused.value).startswith(reason)


def around(single: str) -> Any:
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2}
    names = [name for name in single.split() if name != "$A"]
    return processors.TemplateProcessing(single=single, special_tokens=[(name, ids[name]) for name in names])


POST_PROCESSORS = {
    "none": (None, [], []),
    "byte_level": (processors.ByteLevel(), [], []),
    "template": (around("<s> $A"), [1], []),
    "template_of_two": (around("<s> <unk> $A"), [1, 0], []),
    "template_around": (around("<s> $A </s>"), [1], [2]),
    "appended": (around("$A </s>"), [], [2]),
    "bert": (processors.BertProcessing(("</s>", 2), ("<s>", 1)), [1], [2]),
    "roberta": (processors.RobertaProcessing(("</s>", 2), ("<s>", 1)), [1], [2]),
    "sequence": (processors.Sequence([processors.ByteLevel(), around("<s> $A")]), [1], []),
    "sequence_after": (processors.Sequence([around("<s> $A </s>"), processors.ByteLevel()]), [1], [2]),
}


@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_a_prompt_begins_as_in_transformers_and_is_not_ended(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor, before, after = POST_PROCESSORS[name]
    reference = Reference.from_str(foreign("llama2").decode())
    reference.post_processor = processor
    files = model_files("llama2", **NAMES) | {"tokenizer.json": reference.to_str().encode()}
    tokenizer, auto = load_pretrained(files, "model.path=m"), opened(written(tmp_path, files), monkeypatch)
    for text in ("To be", "", " é\n"):
        ids = tokenizer.prompt_ids(text)
        assert ids + after == auto(text).input_ids
        assert ids == before + tokenizer.encode(text)
    assert tokenizer.begin_id == (before[0] if len(before) == 1 else None)


def test_a_begin_token_that_a_user_types_is_text() -> None:
    tokenizer = load_pretrained(model_files("llama2", **NAMES), "model.path=m")
    ids = tokenizer.prompt_ids("<s> To be</s>")
    assert ids.count(1) == 1
    assert 2 not in ids


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("kind", ["llama2", "llama2_holes", "llama3", "wordpiece", "unigram", "added", "gpt2"])
def test_a_saved_tokenizer_is_that_of_the_folder(
    kind: str, with_mask: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specials = [t.content for t in Reference.from_str(foreign(kind).decode()).get_added_tokens_decoder().values()]
    files = model_files(kind, eos_token=specials[-1], chat_template="{{ eos_token }}{{ messages[0].content }}")
    files |= {"special_tokens_map.json": as_json({"eos_token": specials[-1]}), "notes.txt": b"not of the tokenizer"}
    tokenizer = load_pretrained(files, "model.path=m", with_mask=with_mask)
    tokenizer.save_for_transformers(tmp_path / "saved", 4096)
    changes = with_mask and kind != "wordpiece"
    saved = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert saved.keys() == files.keys() - {"notes.txt"}
    assert changes == any(saved[name] != files[name] for name in saved)
    before, after = opened(written(tmp_path / "came", files), monkeypatch), opened(tmp_path / "saved", monkeypatch)
    chat = [{"role": "user", "content": "hello"}]
    assert after.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(chat, tokenize=False)
    assert after.get_vocab() == before.get_vocab() | ({"<|mask|>": tokenizer.mask_id} if changes else {})
    assert not changes or (after.mask_token, after.mask_token_id) == ("<|mask|>", tokenizer.mask_id)
    for text in (*CORPUS, *HARD):
        assert after(text).input_ids == before(text).input_ids


def test_all_of_its_templates_are_saved(tmp_path: Path) -> None:
    files = model_files("gpt2") | {"chat_template.jinja": b"one", "additional_chat_templates/tool_use.jinja": b"two"}
    load_pretrained({**files, "../evil.jinja": b"x"}, "model.path=m", with_mask=True).save_for_transformers(tmp_path, 9)
    saved = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert saved.keys() == files.keys()
    assert all(saved[name] == files[name] for name in saved if name.endswith(".jinja"))


def test_a_mask_token_is_noted_where_transformers_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = {"content": "</s>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False}
    files = model_files("llama2", eos_token="</s>", added_tokens_decoder={"2": {**end, "special": True}})
    tokenizer = load_pretrained(files, "model.path=m", with_mask=True)
    tokenizer.save_for_transformers(tmp_path, 4096)
    noted = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert noted.keys() == {"2", str(tokenizer.mask_id)}
    auto = opened(tmp_path, monkeypatch)
    assert (auto.mask_token_id, auto.eos_token_id) == (tokenizer.mask_id, 2)


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_mask_token_that_is_not_special_is_in_no_text_once_it_is_used(with_mask: bool) -> None:
    reference = Reference.from_str(foreign("llama2").decode())
    reference.add_tokens([AddedToken("<mask>", normalized=False)])
    tokenizer = load_pretrained({"tokenizer.json": reference.to_str().encode()}, "model.path=m", with_mask=with_mask)
    assert tokenizer.mask_token == "<mask>"
    assert tokenizer.mask_id in tokenizer.special_ids
    assert (tokenizer.mask_id in tokenizer.encode("a <mask> b")) == (not with_mask)


def test_flags_of_special_tokens_stay_as_they_came(tmp_path: Path) -> None:
    reference = Reference.from_str(foreign("gpt2").decode())
    reference.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    files = {"tokenizer.json": reference.to_str().encode(), "config.json": as_json({"eos_token_id": 0})}
    tokenizer = load_pretrained(files, "model.path=m", with_mask=True)
    assert tokenizer.mask_token == "<mask>"
    (mask,) = [t for t in json.loads(tokenizer.serialised())["added_tokens"] if t["content"] == "<mask>"]
    assert mask["lstrip"]
    tokenizer.save_for_transformers(tmp_path, 4096)
    assert (tmp_path / "tokenizer.json").read_bytes() == files["tokenizer.json"]
