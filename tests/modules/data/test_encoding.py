from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import modules.data.encoding as encoding
from modules.config import TokenizerConfig
from modules.data.documents import cut_pieces
from modules.data.encoding import Passage, TextEncoder, words
from modules.data.stdlib import stdlib_files
from modules.data.tokenizer import build_tokenizer

CORPUS = [
    Path(np.__file__).with_name("matlib.py").read_text(),
    "größe ☃ naïve l’été don't we'll I'd 12 34 ___ \n\n\t x",
]


def build(kind):
    return build_tokenizer(TokenizerConfig(kind=kind, vocab_size=600), lambda: iter(CORPUS), None)


TOKENIZERS = {kind: build(kind) for kind in ("bpe", "byte", "char")}
ENCODERS = {kind: TextEncoder(made.serialised(), np.dtype("<u2")) for kind, made in TOKENIZERS.items()}
PARTS = (
    "слово|«|»|。|漢字|한글|שלום|\u0456\u0301|—|\u0378|א\u05b0|ʼ|͵|ª|का|"
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
def test_words_join_to_the_text(text):
    assert "".join(words(text)) == text


def test_a_full_cache_starts_anew(monkeypatch):
    monkeypatch.setattr(encoding, "CACHE_CHARS", 10)
    encoder = TextEncoder(TOKENIZERS["bpe"].serialised(), np.dtype("<u2"))
    texts = [f"word{number} other" for number in range(50)]
    tokens = encoder.encode([Passage(text) for text in texts]).tokens
    assert tokens.tolist() == [token for text in texts for token in TOKENIZERS["bpe"].encode(text)]
    assert len(encoder.cache) < 10
