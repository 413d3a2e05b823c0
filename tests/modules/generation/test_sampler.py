"""Sampling beside transformers' generate()."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from host_reads import host_reads
from torch import Tensor

from modules.errors import InputError
from modules.generation.sampler import sample
from modules.generation.sampling import Sampling
from modules.generation.window import DocumentEnd
from modules.huggingface.export import save_huggingface
from modules.model import GPT
from modules.model_config import ModelConfig

CONFIG = ModelConfig(num_layers=2, num_heads=2, hidden_dim=32, max_positions=40)
VOCAB = 60
PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG, VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    return transformers


def continuation(model: GPT, prompt: list[int] = PROMPT, **changes: Any) -> Tensor:
    """int64 [num_sequences, tokens]"""
    return torch.stack(list(sample(model, [prompt], Sampling(**{"max_new_tokens": 20, "seed": 7, **changes}))), dim=1)


@torch.no_grad()
def greedy_without_cache(model: GPT, prompt: list[int], count: int) -> list[int]:
    model.eval()
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model.head.logits(model(torch.tensor([tokens])))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_equals_transformers_generate(model: GPT, transformers: Any, tmp_path: Path) -> None:
    save_huggingface(tmp_path, CONFIG, VOCAB, model.named_parameters())
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([PROMPT])
    expected = peer.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert continuation(model, temperature=0, max_new_tokens=30)[0].tolist() == expected[0, len(PROMPT) :].tolist()


def test_greedy_with_cache_equals_greedy_without(model: GPT) -> None:
    assert continuation(model, temperature=0)[0].tolist() == greedy_without_cache(model, PROMPT, 20)


def test_same_seed_same_text_and_another_seed_another(model: GPT) -> None:
    assert torch.equal(continuation(model), continuation(model))
    assert not torch.equal(continuation(model), continuation(model, seed=8))


def test_a_sequence_does_not_depend_on_how_many_there_are(model: GPT) -> None:
    assert torch.equal(continuation(model, num_sequences=5)[:2], continuation(model, num_sequences=2))


def test_several_prompts_are_continued_as_each_alone(model: GPT) -> None:
    prompts, sampling = [PROMPT, [9], PROMPT[::-1]], Sampling(num_sequences=2, max_new_tokens=20, seed=7)
    together = torch.stack(list(sample(model, prompts, sampling)), dim=1)
    assert torch.equal(together, torch.cat([continuation(model, prompt, num_sequences=2) for prompt in prompts]))


def test_sequences_differ_from_one_another(model: GPT) -> None:
    assert len({tuple(row) for row in continuation(model, num_sequences=5).tolist()}) == 5


def test_samples_follow_the_distribution(model: GPT) -> None:
    count = 4000
    found = continuation(model, num_sequences=count, max_new_tokens=1)[:, 0].bincount(minlength=VOCAB) / count
    with torch.no_grad():
        expected = model.head.logits(model(torch.tensor([PROMPT])))[0, -1].softmax(-1)
    assert (found - expected).abs().max() < 4 * (expected * (1 - expected) / count).sqrt().max()


def test_top_k_of_one_is_greedy(model: GPT) -> None:
    assert torch.equal(continuation(model, top_k=1), continuation(model, temperature=0))


def test_sequences_end_with_the_stop_token_and_stay_ended(model: GPT) -> None:
    stop_id = int(continuation(model, num_sequences=4)[2, 5])
    found = continuation(model, num_sequences=4, end_ids=(stop_id,)).tolist()
    free = continuation(model, num_sequences=4).tolist()
    for row, expected in zip(found, free, strict=True):
        end = expected.index(stop_id) + 1 if stop_id in expected else len(row)
        assert row[:end] == expected[: min(end, len(row))]
        assert all(token == stop_id for token in row[end:])


def test_sampling_ends_as_soon_as_all_have(model: GPT) -> None:
    stop_id = int(continuation(model, temperature=0)[0, 3])
    first = continuation(model, temperature=0)[0].tolist().index(stop_id)
    assert continuation(model, temperature=0, end_ids=(stop_id,)).shape == (1, first + 1)


def test_text_goes_on_past_the_positions_as_if_its_start_had_been_dropped(model: GPT) -> None:
    count, size = 60, CONFIG.max_positions
    found = continuation(model, temperature=0, max_new_tokens=count)[0].tolist()
    tokens = [*PROMPT, *found[: size - len(PROMPT) + 1]]
    rest = found[size - len(PROMPT) + 1 :]
    assert rest[:10] == greedy_without_cache(model, tokens[-(size // 2 + 1) :], 10)
    assert len(found) == count


def test_of_a_prompt_longer_than_the_positions_the_end_counts(model: GPT) -> None:
    long = [token % VOCAB for token in range(100)]
    found = continuation(model, long, temperature=0, max_new_tokens=1)[0].tolist()
    assert found == greedy_without_cache(model, long[-CONFIG.max_positions :], 1)


def test_sampling_leaves_the_training_mode_as_it_was(model: GPT) -> None:
    model.train()
    continuation(model)
    assert model.training


def test_sampling_works_under_autocast(model: GPT) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert continuation(model, num_sequences=2).shape == (2, 20)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_is_sampled_without_compiling_for_each_length(model: GPT) -> None:
    expected = continuation(model)
    compiled = GPT(CONFIG, VOCAB)
    compiled.load_state_dict(model.state_dict())
    compiled.compile(backend=_refuse)
    assert torch.equal(continuation(compiled), expected)


def _refuse(graph: Any, inputs: Any) -> Any:
    raise AssertionError("compiled")


def test_an_empty_prompt_is_refused(model: GPT) -> None:
    with pytest.raises(InputError, match="no tokens"):
        continuation(model, [])


def test_a_token_that_the_model_lacks_is_refused(model: GPT) -> None:
    with pytest.raises(InputError, match="token 60"):
        continuation(model, [1, 60])


@torch.no_grad()
def greedy_within_documents(model: GPT, prompt: list[int], count: int, end: int) -> list[int]:
    """Continue a prompt; each position attends to those after the last `end` before it."""
    model.eval()
    tokens = list(prompt)
    for _ in range(count):
        ids = torch.tensor([tokens])
        ends = (ids == end).long()
        hidden = model(ids, document_ids=ends.cumsum(1) - ends)
        tokens.append(int(model.head.logits(hidden)[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("prompt", [[9], [3, 1, 9, 4, 9, 1, 5]])
def test_documents_are_kept_apart_where_the_model_learned_it(model: GPT, prompt: list[int]) -> None:
    found = continuation(model, prompt, temperature=0, document_end=DocumentEnd(9))[0].tolist()
    assert found == greedy_within_documents(model, prompt, 20, 9)
    assert found != continuation(model, prompt, temperature=0)[0].tolist()


def test_sequences_end_their_documents_at_different_places(model: GPT) -> None:
    end = int(continuation(model, num_sequences=4)[2, 5])
    found = continuation(model, num_sequences=4, document_end=DocumentEnd(end))
    alone = [continuation(model, num_sequences=n, document_end=DocumentEnd(end))[n - 1] for n in (1, 2, 3, 4)]
    assert torch.equal(found, torch.stack(alone))


def test_no_more_is_seen_at_once_than_the_model_learned(model: GPT) -> None:
    found = continuation(model, temperature=0, max_new_tokens=20, context_length=12)[0].tolist()
    tokens = [*PROMPT, *found[: 12 - len(PROMPT) + 1]]
    assert found[: len(tokens) - len(PROMPT)] == greedy_without_cache(model, PROMPT, len(tokens) - len(PROMPT))
    assert found[len(tokens) - len(PROMPT) :][:4] == greedy_without_cache(model, tokens[-7:], 4)


def test_any_of_several_tokens_ends_a_sequence(model: GPT) -> None:
    free = continuation(model, temperature=0)[0].tolist()
    stop = min(free.index(free[3]), free.index(free[5]))
    assert continuation(model, temperature=0, end_ids=(free[5], free[3]))[0].tolist() == free[: stop + 1]


@pytest.mark.parametrize("changes", [{}, {"temperature": 0}, {"repetition_penalty": 1.2, "top_p": 0.9, "min_p": 0.01}])
def test_the_host_reads_once_a_token(model: GPT, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    row = continuation(model, num_sequences=6, **changes)[3].tolist()
    end_id = max(row, key=row.index)  # the token that comes up last
    sampling = Sampling(num_sequences=6, max_new_tokens=60, end_ids=(end_id, 59), seed=7, **changes)
    tokens = sample(model, [PROMPT], sampling)
    next(tokens)  # the prompt
    with host_reads(monkeypatch) as reads:
        number = sum(1 for _ in tokens)
    assert number > 2
    assert reads.number <= number
