"""Tokens and text of 10,000 random Unicode strings beside `transformers`, for tokenizers of every make.

One difference is meant: the name of a special token within a text is text here, and a control token there. The random
strings hold the names of added tokens that are not special; those of special tokens have a test of their own.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from foreign_tokenizers import foreign
from model_files import as_json, model_files, written
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Reference

from modules.data.pretrained_tokenizer import load_pretrained
from modules.data.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

NUM_STRINGS = 10_000
COMMON = [
    *"abcdefghijklmnopqrstuvwxyzTW012 ,.'-:;!?",
    *(" ", "  ", "\n", "\t", "\r\n", "'s", "to be", "the", "don't", "\u00a0", "\u3000", "\u200b", "\ufeff", "▁"),
    *("é", "e\u0301", "\u0301", "ß", "ﬁ", "Å", "İ", "文", "本", "한", "あ", "ا", "ไ", "न्", "\u202e", "\ufffd", "\x00"),
    *("😀", "👩\u200d👩\u200d👧", "🇩🇪", "<0x0A>", "##ing", "Ġ", "ﷺ", "\U0010ffff", "\ue000", "①", "½"),
]


def strings(seed: int, names: list[str]) -> list[str]:
    """Return random texts: of common pieces, of any code points, and of both, with `names` among them."""
    chosen, found = random.Random(seed), []
    pieces = [*COMMON, *names, *names]
    for number in range(NUM_STRINGS):
        length = chosen.randrange(1, 12)
        anything = [chr(chosen.randrange(0x110000 - 0x800)) for _ in range(length)]
        anything = [chr(ord(c) + 0x800) if ord(c) >= 0xD800 else c for c in anything]  # surrogates are no text
        common = chosen.choices(pieces, k=length)
        both = [chosen.choice(pair) for pair in zip(anything, common, strict=True)]
        found.append("".join((common, both, common, anything)[number % 4]))
    return found


def with_flags() -> Reference:
    made = Reference.from_str(foreign("gpt2").decode())
    made.normalizer = normalizers.Lowercase()
    made.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    made.add_tokens(
        [
            AddedToken("<left>", lstrip=True, normalized=False),
            AddedToken("<right>", rstrip=True, normalized=False),
            AddedToken("word", single_word=True),
            AddedToken("LoUd", normalized=True),
            AddedToken("QuIeT", normalized=False),
            AddedToken("\n\n", normalized=False),
        ]
    )
    return made


def first_prefix() -> Reference:
    """Return Llama 2's form as it is written today: the pre-tokenizer puts the space before the text alone."""
    made = Reference.from_str(foreign("llama2").decode())
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.add_tokens([AddedToken("<turn>", normalized=False)])
    return made


def without_prefix() -> Reference:
    """Return Gemma's form: byte fallback, and no space before a text."""
    made = Reference.from_str(foreign("llama2").decode())
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def made_files(reference: Reference) -> dict[str, bytes]:
    return model_files("gpt2") | {"tokenizer.json": reference.to_str().encode()}


def qwen3_files(shared_file: Callable[[str], Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in shared_file("tokenizers/qwen3").iterdir()}


MODELS: dict[str, Callable[[Any], Mapping[str, bytes]]] = {
    "qwen3": qwen3_files,
    "gpt2": lambda shared_file: (
        model_files("gpt2") | {"tokenizer.json": shared_file("gpt2_tokenizer.json").read_bytes()}
    ),
    "llama2": lambda _: model_files("llama2"),
    "llama2_first": lambda _: made_files(first_prefix()),
    "byte_fallback": lambda _: made_files(without_prefix()),
    "llama3": lambda _: model_files("llama3"),
    "wordpiece": lambda _: model_files("wordpiece"),
    "unigram": lambda _: model_files("unigram"),
    "flags": lambda _: made_files(with_flags()),
}


Pair = tuple[Tokenizer, Any]
"""A model's tokenizer, ours and that of `transformers`."""


def both(files: Mapping[str, bytes], folder: Path) -> Pair:
    import transformers

    return load_pretrained(files, "model.path=m"), transformers.AutoTokenizer.from_pretrained(written(folder, files))


@pytest.fixture(scope="module")
def pair(shared_file: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pair]]:
    """Yield a function that gives the pair of a model, made once."""
    made: dict[str, Pair] = {}

    def of(name: str) -> Pair:
        if name not in made:
            made[name] = both(MODELS[name](shared_file), tmp_path_factory.mktemp(name))
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield of


def added(auto: Any, *, special: bool) -> list[str]:
    return [token.content for token in auto.added_tokens_decoder.values() if token.special == special]


def streamed(tokenizer: Tokenizer, ids: list[int], split: int) -> str:
    stream = tokenizer.text_stream(ids[:split])
    return "".join([*(stream.add(number) for number in ids[split:]), stream.finish()])


@pytest.mark.parametrize("model", MODELS)
def test_tokens_and_text_are_those_of_transformers(model: str, pair: Callable[[str], Pair]) -> None:
    tokenizer, auto = pair(model)
    texts = strings(0, added(auto, special=False))
    assert len(texts) == NUM_STRINGS
    assert not any(name in text for text in texts for name in added(auto, special=True))
    expected = auto(texts).input_ids
    ids = tokenizer.encode_batch(texts)
    after = [auto.sep_token_id or tokenizer.id_of("[SEP]")] if model == "wordpiece" else []
    assert [[*tokenizer.prompt_ids(""), *row, *after] for row in ids] == expected
    decoded = auto.batch_decode(ids, skip_special_tokens=True)
    assert [tokenizer.decode(row) for row in ids] == decoded
    assert [streamed(tokenizer, row, 0) for row in ids] == decoded
    split = {number: number % (len(row) + 1) for number, row in enumerate(ids[:1000])}
    for number, place in split.items():
        row = ids[number]
        assert streamed(tokenizer, row, place) == tokenizer.decode_after(row[:place], row[place:])


@pytest.mark.parametrize("model", MODELS)
def test_names_of_special_tokens_in_text_are_text_here_alone(model: str, pair: Callable[[str], Pair]) -> None:
    tokenizer, auto = pair(model)
    names = [name for name in added(auto, special=True) if name != tokenizer.unknown_token]
    special = set(auto.convert_tokens_to_ids(names))
    for name in names:
        for text in (name, f"be {name} not", f"be{name}not"):
            assert set(auto(text, add_special_tokens=False).input_ids) & special
            assert not set(tokenizer.encode(text)) & special


def test_a_mask_token_joins_the_tokenizer_of_qwen3_beside_its_own_tokens(
    shared_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {**qwen3_files(shared_file), "config.json": as_json({"eos_token_id": [151645, 151643]})}
    tokenizer = load_pretrained(files, "model.path=m", with_mask=True)
    assert (tokenizer.end_ids, tokenizer.end_token) == ((151645, 151643), "<|im_end|>")
    assert (tokenizer.mask_id, tokenizer.padding_token, tokenizer.begin_token) == (151669, "<|endoftext|>", None)
    assert tokenizer.encode("Hello, my dog is cute") == [9707, 11, 847, 5562, 374, 18838]
    tokenizer.save_for_transformers(tmp_path / "saved", 4096)
    saved = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    assert saved["chat_template.jinja"] == files["chat_template.jinja"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, auto = both(saved, tmp_path / "read")
    assert (auto.mask_token_id, auto.eos_token_id) == (151669, 151645)
    assert auto("Hello, my dog is cute").input_ids == [9707, 11, 847, 5562, 374, 18838]
