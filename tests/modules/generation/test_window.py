"""Rows of different lengths in one window, each computed as if it were alone."""

import pytest
import torch
from tiny_models import GPT2, LLAMA, VOCAB, random_model
from torch import Tensor

from modules.errors import InputError
from modules.generation.window import DocumentEnd, Window
from modules.model import GPT

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [2, 7]]


@pytest.fixture(scope="module", params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(request.param)


def appended(window: Window, steps: Tensor) -> Tensor:
    """Append tokens [T, B] and return all logits, [T + 1, B, V]."""
    found = [window.logits]
    for tokens in steps:
        window.append(tokens)
        found.append(window.logits)
    return torch.stack(found)


def tokens(number: int, rows: int) -> Tensor:
    return torch.randint(VOCAB, (number, rows), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("context", "end"),
    [
        *((None, None), (16, None), (12, None), (2, None), (1, None)),
        *((7, DocumentEnd(9)), (7, DocumentEnd(9, True)), (40, DocumentEnd(0, True))),
    ],
    ids=str,
)
def test_rows_of_a_batch_have_the_logits_of_each_alone(
    model: GPT, context: int | None, end: DocumentEnd | None
) -> None:
    given, steps = {"max_new_tokens": 70, "context_length": context, "document_end": end}, tokens(70, 4)
    together = appended(Window(model, PROMPTS, **given), steps)
    for row, prompt in enumerate(PROMPTS):
        alone = appended(Window(model, [prompt], **given), steps[:, row : row + 1])
        torch.testing.assert_close(together[:, row], alone[:, 0], rtol=0, atol=2e-4)


def test_a_document_whose_positions_restart_is_continued_as_if_it_were_alone(model: GPT) -> None:
    given, steps = {"max_new_tokens": 40, "document_end": DocumentEnd(9, restarts_positions=True)}, tokens(20, 2)
    found = appended(Window(model, [[3, 1, 9, 4, 5], [9, 2, 9, 9, 9, 9, 7]], **given), steps)
    alone = appended(Window(model, [[4, 5], [7]], **given), steps)
    torch.testing.assert_close(found, alone, rtol=0, atol=2e-4)


def restarted(model: GPT, prompt: list[int], steps: list[int], size: int) -> Tensor:
    """Return the logits after each step without a cache; of a row that is too long the newer half is seen."""
    seen, found = prompt[-size:], []
    for token in [None, *steps]:
        if token is not None:
            seen = [*(seen[len(seen) - size // 2 :] if len(seen) == size else seen), token]
        with torch.no_grad():
            found.append(model.head.logits(model(torch.tensor([seen])))[0, -1])
    return torch.stack(found)


@pytest.mark.parametrize("size", [40, 13, 4])
def test_a_full_row_goes_on_as_if_its_older_half_had_never_been(model: GPT, size: int) -> None:
    steps = tokens(60, 4)
    together = appended(Window(model, PROMPTS, max_new_tokens=60, context_length=size), steps)
    for row, prompt in enumerate(PROMPTS):
        expected = restarted(model, prompt, steps[:, row].tolist(), size)
        torch.testing.assert_close(together[:, row], expected, rtol=0, atol=2e-4)


def test_rows_can_be_reordered_repeated_and_left_out(model: GPT) -> None:
    steps = tokens(50, 4)
    window = Window(model, PROMPTS, max_new_tokens=50, context_length=16)
    appended(window, steps[:9])
    window.select([2, 0, 0])
    found = appended(window, steps[9:, [2, 0, 0]])
    window = Window(model, PROMPTS, max_new_tokens=50, context_length=16)
    expected = appended(window, steps)[9:]
    torch.testing.assert_close(found, expected[:, [2, 0, 0]], rtol=0, atol=2e-4)


def test_copies_of_a_prompt_are_rows_next_to_each_other(model: GPT) -> None:
    window = Window(model, PROMPTS[:2], num_copies=2, max_new_tokens=5)
    assert window.num_rows == 4
    assert torch.equal(window.logits[0], window.logits[1])
    assert not torch.equal(window.logits[1], window.logits[2])


def count_computed(model: GPT, window: Window, ids: list[int]) -> int:
    """Return how many tokens are computed when the window's row becomes `ids`."""
    widths: list[int] = []
    hook = model.token_embedding.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[1]))
    window.replace(ids, max_new_tokens=3)
    hook.remove()
    return sum(widths)


def test_only_what_differs_from_the_row_is_computed_again(model: GPT) -> None:
    first = PROMPTS[2]
    window = Window(model, [first], max_new_tokens=3)
    appended(window, tokens(2, 1))
    held = [*first, *tokens(2, 1)[:, 0].tolist()]
    for ids, number in (
        ([*held, 1, 2, 3], 3),
        ([*held, 1, 2, 3], 1),
        ([*first[:4], 7, 8], 2),
        (first[:4], 1),
        ([*first[:4], *range(30)], 30),
        ([59], 1),
    ):
        assert count_computed(model, window, ids) == number
        expected = Window(model, [ids], max_new_tokens=3)
        torch.testing.assert_close(window.logits, expected.logits, rtol=0, atol=2e-4)
        if len(ids) < 35:
            step = torch.tensor([4])
            window.append(step)
            expected.append(step)
            torch.testing.assert_close(window.logits, expected.logits, rtol=0, atol=2e-4)
            window.replace(ids, max_new_tokens=3)


@pytest.mark.parametrize(("prompt", "part"), [([], "no tokens"), ([1, VOCAB], "token 60")])
def test_a_prompt_that_the_model_cannot_read_is_refused(model: GPT, prompt: list[int], part: str) -> None:
    with pytest.raises(InputError, match=part):
        Window(model, [[1], prompt], max_new_tokens=1)
