"""The weights before the first step of a classifier that is made of another model, read by any ranges."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import GPT2, LLAMA, VOCAB, random_model
from torch import Tensor

from modules.errors import InputError
from modules.huggingface.export import save_huggingface
from modules.huggingface.folder import LocalFolder
from modules.huggingface.weights import load_huggingface
from modules.initial_values import initial_values
from modules.model import GPT
from modules.model_config import ClassifierConfig, ModelConfig
from orchestrator.checkpoints.first_weights import first_weights
from orchestrator.distributed.training_state import MASTER, Fragment

WANTED = ClassifierConfig(labels=("a", "b", "c"))
OTHERS = {
    "language model": None,
    "other labels": ClassifierConfig(labels=("a", "b")),
    "other order": ClassifierConfig(labels=("b", "a", "c")),
    "other attention": ClassifierConfig(labels=WANTED.labels, attention="bidirectional"),
}
SEED = 11


def written(folder: Path, shape: ModelConfig, own: ClassifierConfig | None) -> GPT:
    model = random_model(shape.model_copy(update={"classifier": own}))
    save_huggingface(folder, model.config, VOCAB, model.named_parameters(), padding_id=0)
    return model


def first(folder: Path, shape: ModelConfig, num_ranks: int) -> dict[str, Tensor]:
    """Return the first weights of a classifier, each rank of which reads a range of every parameter."""
    config = shape.model_copy(update={"classifier": WANTED, "path": str(folder), "vocab_size": VOCAB})
    shapes = {name: list(p.shape) for name, p in GPT(config, VOCAB).named_parameters()}
    found = {name: torch.full((int(torch.tensor(size).prod()),), torch.nan) for name, size in shapes.items()}
    for rank in range(num_ranks):
        cuts = {name: [len(flat) * (rank + i) // num_ranks for i in (0, 1)] for name, flat in found.items()}
        state = first_weights(shapes, config, VOCAB, SEED)
        state.fill(Fragment(name, MASTER, a, b, found[name][a:b]) for name, (a, b) in cuts.items())
    return {name: found[name].view(shapes[name]) for name in shapes}


@pytest.mark.parametrize("shape", [GPT2, LLAMA], ids=["tied", "untied"])
@pytest.mark.parametrize("own", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_score_that_the_model_does_not_have_comes_from_the_seed_and_all_else_from_the_model(
    tmp_path: Path, shape: ModelConfig, own: ClassifierConfig | None, num_ranks: int
) -> None:
    model = dict(written(tmp_path, shape, own).named_parameters())
    found = first(tmp_path, shape, num_ranks)
    score = found.pop("score.weight")
    assert torch.equal(score.flatten(), initial_values("score.weight", (3, 32), 0, 96, SEED, shape, VOCAB))
    for name, values in found.items():
        rows = VOCAB if name == "token_embedding.weight" else len(values)
        assert torch.equal(values[:rows], model[name].detach()[:rows]), name


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_classifier_with_the_same_labels_goes_on_with_its_own_score(tmp_path: Path, num_ranks: int) -> None:
    model = written(tmp_path, LLAMA, WANTED)
    assert torch.equal(first(tmp_path, LLAMA, num_ranks)["score.weight"], model.score.weight.detach())


def test_a_transformer_that_was_published_without_a_head_becomes_a_classifier(tmp_path: Path) -> None:
    model = dict(written(tmp_path, LLAMA, None).named_parameters())
    file = tmp_path / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name != "lm_head.weight"}, file)
    with pytest.raises(InputError, match="lm_head.weight: not among the weights"):
        load_huggingface(LocalFolder(tmp_path))
    found = first(tmp_path, LLAMA, 1)
    assert torch.equal(found["final_norm.weight"], model["final_norm.weight"].detach())
