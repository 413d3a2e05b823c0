import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from modules.config import TokenizerConfig
from modules.data.tokenizer import SPECIAL_TOKENS, Tokenizer, build_tokenizer
from modules.data.trained_tokenizers import take_bytes
from modules.data.traits import byte_alphabet
from modules.errors import InputError

CORPUS = ["The quick brown fox's tail, and the dog's.\n" * 20, "def f(x):\n    return x + 1\n" * 20, "größe ☃ 12345"]
STRANGE = "Zażółć \U0001f600 <|endoftext|>\x00\r\n\t  end <|mask|>"


def build(kind, file=None, documents=CORPUS, **fields):
    path = "given.json" if kind == "file" else None
    return build_tokenizer(TokenizerConfig(kind=kind, path=path, **fields), lambda: iter(documents), file)


BPE, BYTE, CHAR = build("bpe", vocab_size=300), build("byte"), build("char")


@pytest.mark.parametrize("tokenizer", [BPE, BYTE])
@given(text=st.text())
def test_any_text_survives_the_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("tokenizer", [BPE, BYTE, CHAR], ids=["bpe", "byte", "char"])
def test_text_never_becomes_a_special_token(tokenizer):
    for text in (STRANGE, *SPECIAL_TOKENS):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(tokenizer.special_ids)
        assert tokenizer.encode_batch([text]) == [ids]
    assert BPE.decode(BPE.encode(STRANGE)) == STRANGE


@pytest.mark.parametrize("tokenizer", [BPE, BYTE, CHAR], ids=["bpe", "byte", "char"])
def test_special_tokens_come_last_and_have_their_names(tokenizer):
    size = tokenizer.vocab_size
    assert tokenizer.special_ids == tuple(range(size - len(SPECIAL_TOKENS), size))
    assert tokenizer.decode(tokenizer.special_ids, skip_special_tokens=False) == "".join(SPECIAL_TOKENS)
    assert tokenizer.decode(tokenizer.special_ids) == ""
    assert [tokenizer.id_of(name) for name in SPECIAL_TOKENS] == list(tokenizer.special_ids)
    assert tokenizer.end_of_text_id, tokenizer.mask_id == tokenizer.special_ids[:2]


def test_bytes_are_their_own_token_numbers():
    assert BYTE.encode(STRANGE) == list(STRANGE.encode())
    assert BYTE.vocab_size == 256 + len(SPECIAL_TOKENS)


def test_characters_are_numbered_in_their_order():
    tokenizer = build("char", documents=["ba", "ca☃"])
    assert tokenizer.encode("abc☃") == [0, 1, 2, 3]
    assert tokenizer.vocab_size == 5 + len(SPECIAL_TOKENS)


def test_an_unseen_character_becomes_the_replacement_character():
    assert CHAR.decode(CHAR.encode("the żab")) == "the \ufffdab"


def test_a_trained_bpe_has_at_most_the_size_asked_for():
    assert BPE.vocab_size == 300
    assert build("bpe", vocab_size=5000).vocab_size < 500


@pytest.mark.parametrize("tokenizer", [BPE, BYTE], ids=["bpe", "byte"])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tokenizer):
    sizes = tokenizer.token_num_bytes()
    assert sizes.dtype == np.int32
    assert sizes.shape == (tokenizer.vocab_size,)
    assert sizes[tokenizer.encode(STRANGE)].sum() == len(STRANGE.encode())
    assert sizes[list(tokenizer.special_ids)].sum() == 0


def test_the_bytes_that_a_character_spells_are_those_of_its_utf8():
    assert CHAR.spelt_bytes()[CHAR.encode("aö☃")].tolist() == [1, 2, 3]
    assert CHAR.token_num_bytes() is None  # its unknown token stands for characters of any size


@pytest.mark.parametrize("tokenizer", [BPE, BYTE, CHAR], ids=["bpe", "byte", "char"])
def test_a_saved_tokenizer_encodes_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode(STRANGE) == tokenizer.encode(STRANGE)
    assert (loaded.vocab_size, loaded.special_ids) == (tokenizer.vocab_size, tokenizer.special_ids)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("tokenizer", [BPE, BYTE, CHAR], ids=["bpe", "byte", "char"])
def test_transformers_opens_the_file_and_encodes_the_same(tokenizer, tmp_path):
    import transformers

    tokenizer.save(tmp_path / "tokenizer.json")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    text = "The dog's größe\n    return 12  "
    assert fast.encode(text) == tokenizer.encode(text)
    assert fast.decode(tokenizer.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert len(fast) == tokenizer.vocab_size
    assert fast.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(tokenizer.special_ids)


TRAIN = """
import hashlib, sys
from modules.config import TokenizerConfig
from modules.data.tokenizer import build_tokenizer
texts = [f"word{i % 97} other{i % 89} {i}" for i in range(3000)]
made = build_tokenizer(TokenizerConfig(kind="bpe", vocab_size=600), lambda: iter(texts), None)
print(hashlib.sha256(made.serialised().encode()).hexdigest())
"""


def test_training_gives_the_same_bytes_in_every_process_and_on_any_number_of_threads():
    digests = set()
    for seed, threads in (("1", "1"), ("2", "2"), ("3", "4")):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "RAYON_NUM_THREADS": threads,
            "PYTHONPATH": str(Path.cwd()),
        }
        command = [sys.executable, "-c", TRAIN]
        digests.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(digests) == 1


def test_training_reads_no_more_bytes_than_asked_for():
    def documents():
        yield "ab " * 100
        yield "cd " * 100
        raise AssertionError("read too much")

    tokenizer = build_tokenizer(TokenizerConfig(vocab_size=300, max_training_bytes=450), documents, None)
    assert len(tokenizer.encode(" ab cd")) == 2


@given(st.text(), st.integers(0, 100))
def test_take_bytes_never_cuts_a_character(text, num_bytes):
    taken = take_bytes(text, num_bytes)
    assert text.startswith(taken)
    assert len(taken.encode()) <= num_bytes
    assert taken == text or len(text[: len(taken) + 1].encode()) > num_bytes


def test_gpt2s_file_keeps_its_numbers_and_its_end_of_text(shared_file):
    tokenizer = build("file", shared_file("gpt2_tokenizer.json").read_bytes())
    assert tokenizer.encode("Hello, my dog is cute") == [15496, 11, 616, 3290, 318, 13779]
    assert tokenizer.end_of_text_id == 50256
    assert tokenizer.vocab_size == 50257 + len(SPECIAL_TOKENS) - 1
    assert tokenizer.decode(tokenizer.encode(STRANGE)) == STRANGE
    assert not set(tokenizer.encode(STRANGE)) & set(tokenizer.special_ids)
    assert tokenizer.token_num_bytes()[tokenizer.encode(STRANGE)].sum() == len(STRANGE.encode())
    assert tokenizer.token_num_bytes()[50256] == 0


def test_a_file_loses_truncation_padding_and_dropout():
    description = json.loads(BPE.serialised())
    description["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    description["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    description["model"]["dropout"] = 0.5
    tokenizer = build("file", json.dumps(description).encode())
    assert tokenizer.encode(STRANGE) == BPE.encode(STRANGE)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": 5}'])
def test_an_unreadable_file_is_refused_by_name(content):
    with pytest.raises(InputError, match=r"tokenizer\.path=given\.json: not a tokenizer.json"):
        build("file", content)


def test_the_byte_alphabet_is_that_of_tokenizers():
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert byte_alphabet()[ord("a")] == "a"
    assert byte_alphabet()[ord(" ")] == "\u0120"
