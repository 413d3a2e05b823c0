import random

import numpy as np
import pytest

from modules.data.quality.similarity import NUM_HASHES, Signatures, bands, equal_to_earlier, similar_to_earlier
from modules.data.quality.words import Words


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def jaccard(one: list[str], other: list[str]) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def signatures(documents: list[list[str]]) -> np.ndarray:
    sign = Signatures()
    return np.stack([sign.of(Words(" ".join(words))) for words in documents])


def pairs(seed: int, most_edits: int) -> list[list[str]]:
    """Return documents of 200 words, each followed by itself with some words changed."""
    generator = random.Random(seed)
    documents = []
    for number in range(150):
        words = [f"w{generator.randrange(5000)}" for _ in range(200)]
        edited = list(words)
        for place in generator.sample(range(200), number % most_edits):
            edited[place] = "edited"
        documents += [words, edited]
    return documents


@pytest.mark.parametrize("least", [0.6, 0.75, 0.9])
def test_precision_and_recall_beside_the_exact_similarity(least: float) -> None:
    documents = pairs(seed=1, most_edits=15)
    exact = np.array([jaccard(*documents[n : n + 2]) for n in range(0, len(documents), 2)])
    earlier = similar_to_earlier(signatures(documents), np.arange(len(documents)), least)
    assert (earlier[::2] == -1).all()  # different documents have nothing in common
    found = earlier[1::2] >= 0
    assert (earlier[1::2][found] == np.arange(0, len(documents), 2)[found]).all()
    assert 20 < (exact >= least).sum() < 140
    # the estimate has a standard error of at most 0.04
    assert found[exact >= least + 0.08].mean() >= 0.97
    assert not found[exact < least - 0.12].any()
    assert (exact[found] >= least).mean() >= 0.85  # precision, with the uncertain ones
    assert found[exact >= least].mean() >= 0.75  # recall, with the uncertain ones


def test_the_earliest_of_similar_documents_stays_whatever_lies_between() -> None:
    documents = pairs(seed=2, most_edits=3)
    order = [*documents[::2], *documents[1::2], *documents[::2]]
    earlier = similar_to_earlier(signatures(order), np.arange(len(order)), 0.75)
    assert (earlier[:150] == -1).all()
    assert (earlier[150:300] == np.arange(150)).all()
    assert (earlier[300:] == np.arange(150)).all()


def test_only_the_given_documents_are_compared_by_their_own_numbers() -> None:
    documents = pairs(seed=3, most_edits=1)[:8]
    numbers = np.array([1, 2, 3, 6])
    assert similar_to_earlier(signatures(documents), numbers, 0.9).tolist() == [-1, -1, 2, -1]
    assert similar_to_earlier(signatures(documents), np.arange(0), 0.9).tolist() == []


def test_short_texts_are_similar_only_if_they_have_the_same_words() -> None:
    documents = [["Just", "three", "words!"], ["just", "three", "words"], ["just", "four", "words"], [], [""]]
    assert similar_to_earlier(signatures(documents), np.arange(5), 0.9).tolist() == [-1, 0, -1, -1, 3]


def test_equal_digests_name_their_first() -> None:
    digests = np.array([[1, 2], [2, 2], [1, 2], [1, 3], [2, 2], [1, 2]], dtype=np.uint64)
    assert equal_to_earlier(digests).tolist() == [-1, -1, 0, -1, 1, 0]
    assert equal_to_earlier(digests[:0]).tolist() == []


@pytest.mark.parametrize("least", [0.5, 0.6, 0.75, 0.9, 0.99])
def test_bands_find_nine_in_ten_pairs_at_the_least_similarity(least: float) -> None:
    number, rows = bands(least)
    assert number * rows <= NUM_HASHES
    assert 1 - (1 - least**rows) ** number >= 0.9
    # longer bands, which would compare fewer others, find too few
    assert 1 - (1 - least ** (rows + 1)) ** (NUM_HASHES // (rows + 1)) < 0.9 or rows == NUM_HASHES
