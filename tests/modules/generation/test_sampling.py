"""Probabilities of the next token beside those of transformers' logits processors."""

import os
from typing import Any

import numpy as np
import pytest
import torch

from modules.generation.sampling import (
    Sampling,
    Seen,
    Uniforms,
    next_tokens,
    random_stream,
    sampling_probabilities,
)

VOCAB = 60


@pytest.fixture(scope="module")
def transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers


def processors(transformers: Any, sampling: Sampling) -> Any:
    """Return the processors that `generate` of transformers takes for these settings, in its order."""
    from transformers.generation import GenerationMixin

    settings = {name: getattr(sampling, name) for name in ("top_k", "top_p", "min_p")}
    given = {name: value for name, value in settings.items() if value is not None}
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=float(sampling.temperature),
        repetition_penalty=sampling.repetition_penalty,
        **({"top_k": 0} | given),
    )

    class Peer(GenerationMixin):
        class config:
            is_encoder_decoder = False

    return Peer()._get_logits_processor(
        config, input_ids_seq_length=9, device="cpu", model_kwargs={}, logits_processor=[]
    )


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p", "penalty"),
    [
        (1.0, None, None, None, 1.0),
        (0.7, None, None, None, 1.0),
        (1.0, 5, None, None, 1.0),
        (1.0, None, 0.8, None, 1.0),
        (1.5, 12, 0.6, None, 1.0),
        (1.0, 500, None, None, 1.0),
        (1.0, 1, 1e-6, None, 1.0),
        (1.0, None, None, 0.1, 1.0),
        (1.0, None, None, 1.0, 1.0),
        (2.0, 30, 0.9, 0.05, 1.0),
        (1.0, None, None, None, 1.3),
        (0.8, 20, 0.9, 0.02, 1.2),
        (0.8, None, None, None, 0.7),
    ],
)
def test_probabilities_equal_those_of_transformers(
    transformers: Any, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, penalty: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    peer = processors(transformers, sampling)
    for _ in range(20):
        logits = torch.randn(4, VOCAB, generator=generator) * 3
        ids = torch.randint(VOCAB, (4, 9), generator=generator)
        seen = Seen(ids.tolist(), VOCAB, ids.device)
        expected = peer(ids, logits.clone()).softmax(-1)
        torch.testing.assert_close(sampling_probabilities(logits, sampling, seen.mask), expected, rtol=1e-5, atol=0)


def test_min_p_is_a_share_of_the_highest_probability_after_the_temperature() -> None:
    logits = torch.tensor([[2.0, 1.9, 1.0, 0.5, -1.0]])
    kept = sampling_probabilities(logits, Sampling(temperature=3.0, min_p=0.5)) > 0
    assert kept.tolist() == [[True, True, True, True, False]]
    assert (sampling_probabilities(logits, Sampling(temperature=1.0, min_p=0.5)) > 0).tolist()[0][2:] == [False] * 3


def test_equal_logits_are_cut_as_transformers_cuts_them(transformers: Any) -> None:
    for logits, settings in [*_tied(), (torch.zeros(1, 4), {"top_p": 0.5}), (torch.zeros(1, 4), {"top_p": 0.75})]:
        sampling = Sampling(**settings)
        expected = processors(transformers, sampling)(torch.tensor([[0]]), logits.clone()).softmax(-1)
        torch.testing.assert_close(sampling_probabilities(logits, sampling), expected, rtol=1e-6, atol=0)


def _tied() -> list[tuple[torch.Tensor, dict[str, Any]]]:
    logits = torch.tensor([[1.0, 1.0, 1.0, 0.0, 1.0, -2.0]])
    every = ({"top_k": 2}, {"top_p": 0.5}, {"min_p": 1.0}, {"top_k": 2, "top_p": 0.3, "min_p": 0.9})
    return [(logits, settings) for settings in every]


def test_without_temperature_the_penalty_alone_counts() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0]])
    seen = Seen([[0]], 3, logits.device)
    greedy = Sampling(temperature=0, repetition_penalty=1.2, top_k=1, top_p=0.1)
    assert next_tokens(logits, greedy, seen.mask, None).tolist() == [1]
    assert next_tokens(logits, Sampling(temperature=0), None, None).tolist() == [0]


def test_random_numbers_are_a_function_of_seed_prompt_and_sequence() -> None:
    drawn = {
        key: tuple(random_stream(*key).random(3))
        for key in [(7, (1, 2), 0), (7, (1, 2), 1), (7, (2, 1), 0), (8, (1, 2), 0), (7, (1, 2, 3), 0)]
    }
    assert len(set(drawn.values())) == 5
    assert all(tuple(random_stream(*key).random(3)) == numbers for key, numbers in drawn.items())


def test_rows_keep_their_random_numbers_when_others_are_left_out() -> None:
    def streams() -> list[np.random.Generator]:
        return [random_stream(3, [row], 0) for row in range(4)]

    expected = np.stack([stream.random(150) for stream in streams()])
    uniforms, rows = Uniforms(streams(), torch.device("cpu")), [0, 1, 2, 3]
    for step in range(150):
        if step in (10, 100):
            places = [1, 2] if step == 10 else [1]
            uniforms.select(places)
            rows = [rows[place] for place in places]
        assert uniforms.next().tolist() == expected[rows, step].tolist()
