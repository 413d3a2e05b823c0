import random
from pathlib import Path

import pytest

from modules.data.quality.overlap import HeldOutWords, write_index

HELD_OUT = "Which of the seven bridges of the old town can be crossed only once a day?"
FILL = " ".join(f"filling{n}" for n in range(90))
"""Some 900 characters, so that what is around a cut leaves some of it."""


def held_out(folder: Path, *texts: str, num_words: int = 13) -> HeldOutWords:
    folder.mkdir()
    write_index(texts, num_words, folder)
    return HeldOutWords(folder)


def test_held_out_words_are_cut_out_with_200_characters_on_each_side(tmp_path: Path) -> None:
    text = f"{FILL} {HELD_OUT} {FILL}"
    cut = held_out(tmp_path / "i", HELD_OUT).cut(text)
    start = text.index("Which")
    before, after = cut.pieces
    assert text.startswith(before)
    assert text.endswith(after)
    assert len(before) == text.rfind(" ", 0, start - 200 + 1)
    assert len(after) == len(text) - text.index(" ", start + len(HELD_OUT) - 1 + 200)
    assert cut.num_matches == 4  # sequences of 13 among 16 words
    assert cut.first == " ".join(HELD_OUT.split()[:13])


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        (HELD_OUT.upper().replace(" ", " — "), True),
        (" ".join(HELD_OUT.split()[:13]), True),
        (" ".join(HELD_OUT.split()[:12]) + " week", False),
        (" ".join(reversed(HELD_OUT.split())), False),
        ("Nine words that are a whole text of its", True),
        ("Nine words that are a whole text of her", False),
        ("seven words are too few to compare", False),
        ("這個問題的答案是每天只能過橋一次而不是兩次", True),
        ("這個問題的答案是每天可以過橋兩次而不是一次", False),
    ],
)
def test_case_and_punctuation_make_no_difference_and_a_word_does(text: str, is_found: bool, tmp_path: Path) -> None:
    index = held_out(
        tmp_path / "i",
        HELD_OUT,
        "nine words that are a whole text of its",
        "seven words are too few to compare",
        "這個問題的答案是每天只能過橋一次而不是兩次",
    )
    assert (index.cut(text).num_matches > 0) == is_found
    assert (index.cut(f"{FILL} {text} {FILL}").num_matches > 0) == is_found


def test_short_pieces_are_discarded_and_a_document_of_many_is_left_out(tmp_path: Path) -> None:
    index = held_out(tmp_path / "i", HELD_OUT)
    assert index.cut(f"Short. {HELD_OUT} Short.").pieces == []
    assert len(index.cut(f"{FILL} {HELD_OUT} " * 9 + FILL).pieces) == 10
    assert index.cut(f"{FILL} {HELD_OUT} " * 10 + FILL).pieces == []
    assert index.cut(FILL).pieces == [FILL]


def test_texts_too_short_to_be_compared_are_counted(tmp_path: Path) -> None:
    assert write_index(["of seven words this one is not", "", HELD_OUT], 13, tmp_path) == 2
    (tmp_path / "none").mkdir()
    assert write_index([], 13, tmp_path / "none") == 0
    assert HeldOutWords(tmp_path / "none").cut(HELD_OUT).pieces == [HELD_OUT]


@pytest.mark.parametrize("seed", range(4))
def test_exactly_the_documents_with_a_common_sequence_are_found(seed: int, tmp_path: Path) -> None:
    generator = random.Random(seed)
    held = [[generator.choice("abc") for _ in range(generator.randrange(4, 40))] for _ in range(8)]
    documents = [[generator.choice("abc") for _ in range(generator.randrange(3, 40))] for _ in range(200)]
    index = held_out(tmp_path / "i", *(" ".join(words) for words in held), num_words=6)

    def sequences(words: list[str], size: int) -> set[tuple[str, ...]]:
        return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}

    known = set().union(*(sequences(words, 6) for words in held))
    truth = [bool(sequences(words, 6) & known) for words in documents]
    assert 20 < sum(truth) < 180
    assert [index.cut(" ".join(words)).num_matches > 0 for words in documents] == truth
