"""The paired bootstrap beside sacrebleu's own and beside a plain loop."""

import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from modules.errors import InputError
from modules.tasks import text_scores
from modules.tasks.bootstrap import paired_bootstrap
from modules.tasks.text_scores import TextScores

LINE = "the cat sat on a mat while dogs ran over green hills and 3.5 birds sang, softly"
WORDS = LINE.split()


def texts(number: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(3, 14))) for _ in range(number)]


def spoilt(references: list[str], share: float, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [
        " ".join(generator.choice(WORDS) if generator.random() < share else word for word in text.split())
        for text in references
    ]


REFERENCES = texts(40, 0)
FIRST, SECOND = spoilt(REFERENCES, 0.3, 1), spoilt(REFERENCES, 0.4, 2)


def test_bleu_and_chrf_and_their_p_values_are_those_of_sacrebleu() -> None:
    signatures, theirs = PairedTest(
        [("second", SECOND), ("first", FIRST)], {"bleu": BLEU(), "chrf": CHRF()}, [REFERENCES], "bs", n_samples=200
    )()
    first, second = (TextScores(found, REFERENCES, "13a") for found in (FIRST, SECOND))
    pairs = {name: (score, second.scorers[name]) for name, score in first.scorers.items()}
    ours = paired_bootstrap(pairs, len(REFERENCES), 200, seed=12345)
    for name, their_name in (("bleu", "BLEU"), ("chrf", "chrF2")):
        base, other = theirs[their_name]
        assert ours[name].first == pytest.approx(other.score, abs=1e-9)  # type: ignore[union-attr]
        assert ours[name].second == pytest.approx(base.score, abs=1e-9)  # type: ignore[union-attr]
        assert ours[name].p_value == other.p_value  # type: ignore[union-attr]
        theirs_of_a_test = signatures[their_name].format()
        assert theirs_of_a_test.replace("bs:200|seed:12345|", "") == first.signatures[name]


def test_scores_are_of_the_corpus_and_no_mean_over_texts() -> None:
    scores = TextScores(FIRST, REFERENCES, "char")
    whole = np.ones(len(REFERENCES))
    expected = BLEU(tokenize="char").corpus_score(FIRST, [REFERENCES]).score
    assert scores.scorers["bleu"](whole) == pytest.approx(expected, abs=1e-9)
    assert scores.scorers["chrf"](whole) == pytest.approx(CHRF().corpus_score(FIRST, [REFERENCES]).score, abs=1e-9)


def test_an_interval_of_accuracy_is_that_of_a_plain_loop() -> None:
    generator = np.random.default_rng(3)
    right = [(generator.random(60) < share).astype(float) for share in (0.8, 0.6)]
    pair = tuple(lambda weights, mine=mine: float(weights @ mine / weights.sum()) for mine in right)
    ours = paired_bootstrap({"accuracy": pair}, 60, 300, seed=7)["accuracy"]  # type: ignore[dict-item]
    drawn = np.random.default_rng(7).choice(60, size=(300, 60))
    differences = [np.mean([right[0][n] for n in places]) - np.mean([right[1][n] for n in places]) for places in drawn]
    assert (ours.low, ours.high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-12)
    assert ours.difference == pytest.approx(right[0].mean() - right[1].mean())
    assert ours.is_sure == (ours.low > 0)


def test_a_model_does_not_differ_from_itself() -> None:
    scorers = TextScores(FIRST, REFERENCES, "13a").scorers
    found = paired_bootstrap({name: (score, score) for name, score in scorers.items()}, len(REFERENCES), 50, seed=1)
    assert {(one.low, one.high, one.p_value, one.is_sure) for one in found.values()} == {(0.0, 0.0, 1 / 51, False)}


def test_without_sacrebleu_the_message_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(InputError, match=r"task=translation: .* pip install 'gpt-orchestrator\[eval\]'"):
        text_scores.check_sacrebleu()
