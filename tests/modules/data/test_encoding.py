import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modules.config import TokenizerConfig
from modules.data.documents import cut_pieces
from modules.data.encoding import Passage, TextEncoder
from modules.data.gpt2_words import merge_ranks, stretches
from modules.data.stdlib import stdlib_files
from modules.data.tokenizer import build_tokenizer
from modules.data.traits import byte_alphabet

CORPUS = [
    Path(np.__file__).with_name("matlib.py").read_text(),
    "größe ☃ naïve l’été don't we'll I'd 12 34 ___ \n\n\t x",
]


def build(kind):
    return build_tokenizer(TokenizerConfig(kind=kind, vocab_size=600), lambda: iter(CORPUS), None)


TOKENIZERS = {kind: build(kind) for kind in ("bpe", "byte", "char")}
ENCODERS = {kind: TextEncoder(made.serialised(), np.dtype("<u2")) for kind, made in TOKENIZERS.items()}
PARTS = (
    "\x01|слово|«|»|。|漢字|한글|שלום|\u0456\u0301|—|\u0378|א\u05b0|ʼ|͵|ª|का|"
    + "a|don't|'s|'S|'|12|é|字| |  |\n|\t |\x1c|\x0b|\x85|\u3000|\u00a0|_|!?|<endoftext>|²|Ⅷ|\U0001f600|e\u0301|\x00|X"
)
WORDY = st.lists(st.sampled_from(PARTS.split("|")), max_size=40).map("".join)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=300)
@given(text=st.one_of(WORDY, st.text()))
@example(text="a \x1c b\x1d c")
@example(text="é  a b é c d")
def test_looked_up_words_give_the_tokens_that_tokenizers_gives(kind, text):
    tokens, counts, *_ = ENCODERS[kind].encode([Passage(text), Passage("between"), Passage(text)])
    expected = TOKENIZERS[kind].encode(text)
    assert tokens.tolist() == [*expected, *TOKENIZERS[kind].encode("between"), *expected]
    assert counts.tolist() == [len(expected), len(tokens) - 2 * len(expected), len(expected)]


def test_real_text_gets_the_tokens_of_tokenizers_whole_or_in_pieces():
    texts = [(Path(file.root) / file.name).read_text("utf-8") for file in stdlib_files()[::60]]
    pieces = [Passage(piece.text) for text in texts for piece in cut_pieces([text])]
    tokens = ENCODERS["bpe"].encode(pieces).tokens
    assert tokens.tolist() == [token for ids in TOKENIZERS["bpe"].encode_batch(texts) for token in ids]


@given(WORDY)
def test_stretches_join_to_the_text(text):
    assert "".join(stretches(text)) == text


def described(merges, added=()):
    """Return the description of a byte-level BPE of these merges."""
    names = [*byte_alphabet(), *("".join(pair) for pair in merges)]
    model = tokenizers.models.BPE({name: number for number, name in enumerate(dict.fromkeys(names))}, merges)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(added))
    return json.loads(tokenizer.to_str())


PLACES = st.tuples(st.integers(0, 99), st.integers(0, 99))


@given(
    places=st.lists(PLACES, min_size=1, max_size=8), texts=st.lists(st.text("ab", max_size=30), min_size=9, max_size=9)
)
@settings(max_examples=300)
@example(places=[(1, 0), (0, 1), (3, 0)], texts=["aba"])
@example(places=[(0, 0), (2, 0)], texts=["aaaaaaa"])
@example(places=[(0, 0), (0, 2)], texts=["aaaaaaa"])
def test_any_vocabulary_gives_the_tokens_that_tokenizers_gives(places, texts):
    known, merges = ["a", "b"], []
    for left, right in places:
        pair = known[left % len(known)], known[right % len(known)]
        if "".join(pair) not in known:
            merges.append(pair)
            known.append("".join(pair))
    description = described(merges)
    encoder = tokenizers.Tokenizer.from_str(json.dumps(description))
    expected = [encoder.encode(text).ids for text in texts]
    found = TextEncoder(json.dumps(description), np.dtype("<u2")).encode([Passage(text) for text in texts])
    assert found.tokens.tolist() == list(chain.from_iterable(expected))
    assert found.counts.tolist() == list(map(len, expected))


@pytest.mark.parametrize(
    ("merges", "is_read"),
    [
        ([("a", "b"), ("ab", "c"), ("c", "d")], True),
        ([("a", "a"), ("aa", "a")], True),
        # "abc" becomes a, bc, which is not in the list, and tiktoken would merge it
        ([("b", "c"), ("a", "b"), ("ab", "c")], False),
        ([("a", "a"), ("a", "aa")], False),
        ([("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")], False),
        ([], False),
    ],
)
def test_tiktoken_reads_vocabularies_whose_tokens_are_what_their_text_is_merged_to(merges, is_read):
    assert (merge_ranks(described(merges)) is not None) == is_read


def test_a_vocabulary_whose_words_are_special_is_left_to_tokenizers():
    assert merge_ranks(described([("a", "b")], added=["ab"])) is None
    assert merge_ranks(described([("a", "b")], added=["<|ab|>"])) is not None


def test_a_trained_vocabulary_is_read_by_tiktoken():
    assert merge_ranks(json.loads(TOKENIZERS["bpe"].serialised())) is not None


def test_a_long_word_is_encoded():
    text = "ab" * 500_000
    assert len(ENCODERS["bpe"].encode([Passage(text)]).tokens) == len(TOKENIZERS["bpe"].encode(text))
