"""The bytes that a forward pass is said to keep are those of the tensors that autograd keeps."""

import contextlib
from typing import Any, NamedTuple

import pytest
import torch
from live_bytes import LiveBytes

from modules import linear
from modules.config import ActivationCheckpointing, ObjectiveConfig, PhaseConfig, Precision
from modules.data.masking import num_masked
from modules.model import GPT, initialize
from modules.model_config import LoraConfig, ModelConfig
from orchestrator.planning.activations import (
    Pass,
    activation_bytes,
    again_bytes,
    head_buffer_bytes,
    head_bytes,
    head_weight_bytes,
    kept_bytes,
    passes,
)

VOCAB = 256
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"family": "gpt2"},
    "llama": {"family": "llama", "num_kv_heads": 2},
    "normed queries": {"family": "llama", "num_kv_heads": 2, "query_key_norm": True, "qkv_bias": True},
    "gpt2 lora": {"family": "gpt2", "lora": LoraConfig(rank=4)},
    "llama lora": {
        "family": "llama",
        "num_kv_heads": 2,
        "lora": LoraConfig(rank=4, target_layers=("q_proj", "v_proj")),
    },
}
PRECISIONS: tuple[Precision, ...] = ("32", "bf16", "bf16-true")


@pytest.fixture(autouse=True)
def _products_as_with_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the same products on every processor; torch's own do not keep the weights of the first adapters."""
    monkeypatch.setattr(linear, "_onednn_is_faster", lambda: True)


class Lived(NamedTuple):
    kept: int
    fullest: int


def kept(config: ModelConfig, batch: int, length: int, precision: Precision, **inputs: Any) -> int:
    """Return the bytes of all tensors that the forward pass keeps, without the parameters."""
    model = GPT(config, VOCAB)
    initialize(model, 1)
    model = model.bfloat16() if precision == "bf16-true" else model
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(0, VOCAB, (batch, length))
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        model.head(model(ids, **inputs), ids)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_are_those_that_autograd_keeps(shape: str, precision: Precision) -> None:
    config = ModelConfig(num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=192, max_positions=512, **SHAPES[shape])
    for batch, length in ((2, 128), (1, 512)):  # with few positions attention is computed in float32
        of = Pass(batch * length, length, batch * length)
        found = activation_bytes(config, of, precision, "cpu") + head_bytes(config, VOCAB, of, precision)
        # bfloat16 statistics of LayerNorm have two bytes on CPU, and four on a GPU
        assert found == pytest.approx(
            kept(config, batch, length, precision), rel=0.006 if "true" in precision else 1e-9
        )


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("shape", ["gpt2", "llama", "llama lora"])
def test_documents_are_put_together_and_may_have_positions_of_their_own(
    shape: str, precision: Precision, restarts: bool
) -> None:
    config = ModelConfig(num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=192, max_positions=1024, **SHAPES[shape])
    of = Pass(2048, 1024, 2048, within_documents=True, restarts_positions=restarts)
    found = activation_bytes(config, of, precision, "cpu") + head_bytes(config, VOCAB, of, precision)
    inputs = {} if restarts else {"positions": torch.arange(1024)}
    assert found == kept(config, 2, 1024, precision, lengths=[1000, 24, 1024], **inputs)


def test_compiled_passes_over_the_logits_hold_no_probabilities_beside_them() -> None:
    of = Pass(2048, 512, 2048)
    for precision in PRECISIONS:
        inputs = (ModelConfig(), 8192, of, precision, "cpu")
        chunk = 2**22  # logits
        probabilities = 0 if precision == "32" else 4 * chunk  # which take the place of float32 logits
        assert head_buffer_bytes(*inputs) - head_buffer_bytes(*inputs, "compiled") == probabilities


def test_each_loss_of_a_phase_has_a_pass_of_its_own() -> None:
    both = PhaseConfig(weights={"clm": 0.5, "mlm": 0.5}, fraction=0.5)
    config = ObjectiveConfig(phases=(both, PhaseConfig(weights={"mlm": 1.0, "clm": 0.0}, fraction=0.5)))
    first, second = passes(config, micro_batch=3, length=40)
    assert [each.head_tokens for each in first] == [120, 3 * num_masked(config, 40)]
    assert [each.head_tokens for each in second] == [3 * num_masked(config, 40)]


@pytest.mark.parametrize("mode", ["blocks", "selective"])
@pytest.mark.parametrize("precision", PRECISIONS[:2])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_that_are_computed_again_keep_what_is_said(
    shape: str, precision: Precision, mode: ActivationCheckpointing
) -> None:
    config = ModelConfig(num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=192, max_positions=512, **SHAPES[shape])
    of = Pass(512, 512, 512)
    seen = lived(config, 1, 512, precision, mode)
    head = head_bytes(config, VOCAB, of, precision)
    found = kept_bytes(config, of, precision, "cpu", mode)
    assert found + head == pytest.approx(seen.kept, rel=0.01)
    fullest = found + head_weight_bytes(config, VOCAB) + again_bytes(config, of, precision, "cpu", mode)
    assert fullest == pytest.approx(seen.fullest, rel=0.1)


def lived(config: ModelConfig, batch: int, length: int, precision: Precision, mode: ActivationCheckpointing) -> Lived:
    """Return the bytes of all tensors beside the parameters and their gradients, at the end of the forward pass and at
    the fullest moment of the backward pass."""
    model = GPT(config, VOCAB)
    initialize(model, 1)
    model = model.bfloat16() if precision == "bf16-true" else model
    model.activation_checkpointing = mode
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    ids = torch.randint(0, VOCAB, (batch, length))
    autocast = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with LiveBytes([*model.parameters(), *grads, ids]) as live:
        with autocast:
            loss = model.head(model(ids), ids)
        kept = live.begin_anew()
        loss.backward()
    return Lived(kept, live.most)
