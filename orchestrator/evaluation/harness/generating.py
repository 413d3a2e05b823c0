"""A task's settings of generation, as lm-eval and `transformers` understand them, in our words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from modules.data.pretrained_tokenizer import read_json
from modules.generation.continuations import BeamSettings
from modules.huggingface.folder import GENERATION_CONFIG

MAX_GEN_TOKS = 256
"""Longest answer of a task that says nothing about it, as in lm-eval's `hf` model."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_DRAWING = ("top_k", "top_p", "min_p")
KNOWN = frozenset(
    (*_LENGTHS, *_DRAWING, "until", "do_sample", "temperature", "repetition_penalty", "num_beams", "length_penalty")
)
"""Settings that a task may have."""


@dataclass(frozen=True)
class Generation:
    """How the answers to some of a task's questions are generated."""

    until: tuple[str, ...]
    """Texts that end an answer."""
    max_new_tokens: int
    sampling: dict[str, Any]
    """Further fields of `Sampling`."""
    beams: BeamSettings | None


def generation(settings: Mapping[str, Any], files: Mapping[str, bytes]) -> Generation:
    """Return how a task has answers generated.

    Args:
        settings: The task's `generation_kwargs`.
        files: The small files of the model: its generation_config.json has the values of what the task leaves open, as
            `transformers` takes them from there.
    """
    given: dict[str, Any] = dict(normalize_gen_kwargs(dict(settings), MAX_GEN_TOKS))
    usual = read_json(files, GENERATION_CONFIG, "the model")
    draws = bool(given["do_sample"]) and float(given.get("temperature", 0)) > 0
    sampling: dict[str, Any] = {"temperature": float(given["temperature"]) if draws else 0.0}
    for name in ("repetition_penalty", *(_DRAWING if draws else ())):
        value = given.get(name, usual.get(name))
        if value:  # transformers takes a top_k of 0 as none
            sampling[name] = value
    num_beams = int(given.get("num_beams", usual.get("num_beams")) or 1)
    penalty = float(given.get("length_penalty", usual.get("length_penalty") or 1.0))
    return Generation(
        until=tuple(text for text in given["until"] if text),
        max_new_tokens=given["max_gen_toks"],
        sampling=sampling,
        beams=BeamSettings(num_beams, penalty) if num_beams > 1 else None,
    )
