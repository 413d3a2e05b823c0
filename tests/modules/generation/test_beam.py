"""Beam search beside that of transformers."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from host_reads import host_reads
from tiny_models import GPT2, LLAMA, VOCAB, random_model

from modules.generation.beam import Beam, beam_search
from modules.generation.sampling import Sampling
from modules.huggingface.export import save_huggingface
from modules.model import GPT

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [2, 7]]
PADDING = 57


@pytest.fixture(scope="module", params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Any]:
    """Our model, and the same one opened by transformers."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModelForCausalLM

    folder, model = tmp_path_factory.mktemp("model"), random_model(request.param)
    _save(folder, model)
    return model, AutoModelForCausalLM.from_pretrained(folder)


def _save(folder: Path, model: GPT) -> None:
    save_huggingface(folder, model.config, VOCAB, model.named_parameters())


def never(ids: Any) -> bool:
    return False


def searched(model: GPT, prompts: list[list[int]], num_beams: int, penalty: float = 1.0, **changes: Any) -> Any:
    sampling = Sampling(**{"max_new_tokens": 12, "num_sequences": num_beams, **changes})
    return beam_search(model, prompts, sampling, num_beams, penalty, [never] * len(prompts))


def peers(peer: Any, prompt: list[int], num_beams: int, penalty: float, ends: list[int] | None, **more: Any) -> Any:
    ids = torch.tensor([prompt])
    return peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        length_penalty=penalty,
        eos_token_id=ends,
        pad_token_id=PADDING,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **{"max_new_tokens": 12, **more},
    )


def assert_same(found: list[Beam], expected: Any, prompt: list[int]) -> None:
    rows = expected.sequences[:, len(prompt) :].tolist()
    for beam, row, score in zip(found, rows, expected.sequences_scores.tolist(), strict=True):
        assert list(beam.ids) == row[: len(beam.ids)]
        assert set(row[len(beam.ids) :]) <= {PADDING}
        assert beam.score == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(
    ("num_beams", "penalty", "num_ends", "repetition"),
    [(2, 1.0, 0, 1.0), (4, 1.0, 1, 1.0), (4, 2.0, 3, 1.0), (3, 0.0, 8, 1.0), (3, -1.0, 8, 1.0), (5, 1.0, 4, 1.3)],
)
def test_texts_and_scores_equal_those_of_transformers(
    both: tuple[GPT, Any], num_beams: int, penalty: float, num_ends: int, repetition: float
) -> None:
    model, peer = both
    free = searched(model, PROMPTS, num_beams, repetition_penalty=repetition)
    # tokens that come up, some of them early
    ends = list(dict.fromkeys(token for beam in free[0] + free[1] for token in beam.ids[2:]))[:num_ends]
    for prompt in PROMPTS:
        (found,) = searched(model, [prompt], num_beams, penalty, end_ids=tuple(ends), repetition_penalty=repetition)
        expected = peers(peer, prompt, num_beams, penalty, ends or None, repetition_penalty=repetition)
        assert_same(found, expected, prompt)
        assert len({beam.ids for beam in found}) == num_beams


def test_as_many_beams_go_on_where_most_of_the_likeliest_tokens_are_end_tokens(both: tuple[GPT, Any]) -> None:
    model, peer = both
    for prompt in PROMPTS:
        (likeliest,) = searched(model, [prompt], 9, max_new_tokens=1)
        ends = [beam.ids[0] for beam in likeliest[1:]]
        (found,) = searched(model, [prompt], 3, 3.0, end_ids=tuple(ends))
        assert_same(found, peers(peer, prompt, 3, 3.0, ends), prompt)


@pytest.mark.parametrize("num_ends", [0, 6])
def test_prompts_searched_together_have_the_beams_of_each_alone(both: tuple[GPT, Any], num_ends: int) -> None:
    model, _ = both
    ends = tuple(dict.fromkeys(searched(model, PROMPTS, 3)[0][0].ids[2:]))[:num_ends]
    settings = {"end_ids": ends, "repetition_penalty": 1.1, "max_new_tokens": 30, "num_sequences": 2}
    together = searched(model, PROMPTS, 3, **settings, context_length=16)
    for prompt, found in zip(PROMPTS, together, strict=True):
        (alone,) = searched(model, [prompt], 3, **settings, context_length=16)
        assert [beam.ids for beam in found] == [beam.ids for beam in alone]
        assert [beam.score for beam in found] == pytest.approx([beam.score for beam in alone], abs=1e-4)


def test_a_beam_ends_where_its_text_is_over(both: tuple[GPT, Any]) -> None:
    model, _ = both
    (free,) = searched(model, [PROMPTS[0]], 3)
    last = free[0].ids[3]
    sampling = Sampling(max_new_tokens=12, num_sequences=3)
    (by_text,) = beam_search(model, [PROMPTS[0]], sampling, 3, 1.0, [lambda ids: ids[-1] == last])
    (by_token,) = searched(model, [PROMPTS[0]], 3, end_ids=(last,))
    assert by_text == by_token != free


def test_the_host_reads_once_a_token(both: tuple[GPT, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with host_reads(monkeypatch) as reads:
        searched(both[0], PROMPTS, 3, repetition_penalty=1.2, end_ids=(5,))
    assert reads.number <= 12
