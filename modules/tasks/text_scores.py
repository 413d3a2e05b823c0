"""BLEU and chrF of texts, by sacrebleu; importing this module does not import it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from modules.errors import InputError
from modules.tasks.bootstrap import Scorer, Weights


class TextScores:
    """The metrics of texts with one reference each; computed from sums over texts, so any sample of them has its own.

    Each is what sacrebleu gives for the whole corpus: no mean over texts.
    """

    def __init__(self, texts: Sequence[str], references: Sequence[str], bleu_tokenizer: str) -> None:
        """Count what the metrics are computed from.

        Args:
            texts: What a model has written.
            references: The right answers, in the same order.
            bleu_tokenizer: How BLEU divides a text into words; see sacrebleu.
        """
        self._metrics = _metrics(bleu_tokenizer)
        self._counts = {
            name: np.asarray(metric._extract_corpus_statistics(list(texts), [list(references)]), np.float64)
            for name, metric in self._metrics.items()
        }

    @property
    def scorers(self) -> dict[str, Scorer]:
        """Each metric, in 0 to 100, as a function of how often each text counts."""
        return {name: self._scorer(name) for name in self._metrics}

    @property
    def signatures(self) -> dict[str, str]:
        """How each was computed, in sacrebleu's words."""
        return {name: metric.get_signature().format() for name, metric in self._metrics.items()}

    def _scorer(self, name: str) -> Scorer:
        metric, counts = self._metrics[name], self._counts[name]

        def score(weights: Weights) -> float:
            return float(metric._compute_score_from_stats(weights @ counts).score)

        return score


def check_sacrebleu() -> None:
    """Refuse to go on without the package.

    Raises:
        InputError: It is not installed.
    """
    _metrics("13a")


def _metrics(bleu_tokenizer: str) -> dict[str, Any]:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise InputError(
            "task=translation: BLEU and chrF need the package sacrebleu: pip install 'gpt-orchestrator[eval]'"
        ) from error
    return {"bleu": BLEU(tokenize=bleu_tokenizer), "chrf": CHRF()}
