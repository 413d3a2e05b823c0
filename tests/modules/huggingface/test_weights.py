"""Weights read by ranges: any division of them gives the whole, and reads no byte twice."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from published_models import write_published

from modules.huggingface.folder import LocalFolder, read_config
from modules.huggingface.weights import Range, Weights, load_huggingface
from modules.model import GPT


@dataclass(frozen=True)
class CountingFolder(LocalFolder):
    """Counts the bytes that are read."""

    reads: list[int] = field(default_factory=list)

    def read_into(self, name: str, start: int, target: memoryview) -> None:
        self.reads.append(len(target))
        super().read_into(name, start, target)


def filled(weights: Weights, num_ranks: int) -> dict[str, torch.Tensor]:
    """Return all parameters, filled as by ranks that hold an equal share of each, which may begin in mid-row."""
    values = {name: torch.full(shape, torch.nan) for name, shape in weights.shapes.items()}
    for rank in range(num_ranks):
        ranges = []
        for name, tensor in values.items():
            start, stop = (tensor.numel() * (rank + i) // num_ranks for i in (0, 1))
            ranges.append(Range(name, start, stop, tensor.view(-1)[start:stop]))
        weights.fill(ranges, num_readers=2)
    return values


@pytest.mark.parametrize("kind", ["gpt2", "llama", "untied"])
@pytest.mark.parametrize("num_ranks", [1, 3, 7])
def test_ranges_of_any_ranks_are_the_whole_model(tmp_path: Path, kind: str, num_ranks: int) -> None:
    write_published(tmp_path / "model", kind, max_shard_size="30KB")
    folder = LocalFolder(tmp_path / "model")
    whole = dict(load_huggingface(folder).named_parameters())
    parts = filled(Weights(folder, read_config(folder)), num_ranks)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], parameter) for name, parameter in whole.items())


def test_ranks_together_read_each_byte_once(tmp_path: Path) -> None:
    write_published(tmp_path / "model", "untied")
    folder = CountingFolder(tmp_path / "model")
    weights = Weights(folder, read_config(folder))
    folder.reads.clear()
    filled(weights, num_ranks=5)
    peer = sum(parameter.numel() for parameter in write_published(tmp_path / "same", "untied").parameters())
    assert sum(folder.reads) == 4 * peer


@pytest.mark.parametrize("kind", ["gpt2", "llama", "untied"])
def test_new_tokens_take_little_of_the_probability_and_change_no_old_logit(tmp_path: Path, kind: str) -> None:
    write_published(tmp_path / "model", kind)
    folder = LocalFolder(tmp_path / "model")
    before, config = load_huggingface(folder).eval(), read_config(folder)
    num_old = config.vocab_size
    assert num_old is not None
    weights = Weights(folder, config, num_old + 30)  # beyond the rows that pad the vocabulary to a multiple of 64
    after = GPT(config, weights.vocab_size).eval()
    weights.fill(Range(name, 0, p.numel(), p.detach().view(-1)) for name, p in after.named_parameters())
    ids = torch.randint(0, num_old, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        old, new = (model.head.logits(model(ids)) for model in (before, after))
    torch.testing.assert_close(new[..., :num_old], old, rtol=0, atol=1e-6)
    probability = new.softmax(-1)[..., num_old:]
    assert probability.max() <= 1 / num_old
    assert after.token_embedding.weight[weights.vocab_size :].abs().max() == 0
