"""The model beside transformers' GPT-2, attention beside its formula, and initial weights."""

import copy
import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from modules.attention import Attention, KeyValueCache
from modules.huggingface.export import save_huggingface
from modules.huggingface.folder import LocalFolder
from modules.huggingface.weights import load_huggingface
from modules.initial_values import initial_values
from modules.model import GPT, OutputHead, decayed_parameter_names, initialize, padded_vocab_size
from modules.model_config import LoraConfig, ModelConfig

CONFIG = ModelConfig(num_layers=2, num_heads=4, hidden_dim=32, max_positions=24)
VOCAB = 75
BATCH, LENGTH = 3, 20


def sharp_model(config: ModelConfig = CONFIG) -> GPT:
    """A model whose weights are so large that attention and GELU matter to the fourth digit."""
    torch.manual_seed(0)
    model = GPT(config, VOCAB).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return sharp_model()


@pytest.fixture(scope="module")
def peer(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """transformers' GPT-2 with the same weights, whose attention obeys a 4D mask."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers

    folder: Path = tmp_path_factory.mktemp("peer")
    save_huggingface(folder, model.config, VOCAB, model.named_parameters())
    return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()


@pytest.fixture
def input_ids() -> Tensor:
    return torch.randint(0, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def padding_mask() -> Tensor:
    return torch.arange(LENGTH) < torch.tensor([LENGTH, 11, 1])[:, None]


@pytest.fixture
def document_ids() -> Tensor:
    return (torch.arange(LENGTH) >= torch.tensor([0, 7, 13])[:, None]).int() + (torch.arange(LENGTH) >= 16).int()


@torch.no_grad()
def logits(model: GPT, input_ids: Tensor, **arguments: Tensor | bool) -> Tensor:
    return model.head.logits(model(input_ids, **arguments))


@torch.no_grad()
def peer_logits(peer: torch.nn.Module, input_ids: Tensor, visible: Tensor) -> Tensor:
    """Logits with a bool mask [B, 1, T, T], True where a position sees another."""
    return peer(input_ids, attention_mask=visible.expand(BATCH, 1, LENGTH, LENGTH)).logits


def largest_difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    assert expected.std() > 0.3
    return (found - expected).abs().max().item()


def causal_mask(causal: bool) -> Tensor:
    everywhere = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    return (everywhere.tril() if causal else everywhere)[None, None]


def test_causal_logits_equal_transformers(model: GPT, peer: torch.nn.Module, input_ids: Tensor) -> None:
    with torch.no_grad():
        expected = peer(input_ids).logits
    assert largest_difference(logits(model, input_ids), expected) < 1e-4


def test_bidirectional_logits_equal_transformers(model: GPT, peer: torch.nn.Module, input_ids: Tensor) -> None:
    expected = peer_logits(peer, input_ids, causal_mask(False))
    assert largest_difference(expected, peer_logits(peer, input_ids, causal_mask(True))) > 0.1
    assert largest_difference(logits(model, input_ids, causal=False), expected) < 1e-4


def test_causal_logits_with_padding_equal_transformers_own_mask(
    model: GPT, peer: torch.nn.Module, input_ids: Tensor, padding_mask: Tensor
) -> None:
    with torch.no_grad():
        expected = peer(input_ids, attention_mask=padding_mask.long()).logits
    found = logits(model, input_ids, padding_mask=padding_mask)
    assert largest_difference(found[padding_mask], expected[padding_mask]) < 1e-4


def test_bidirectional_logits_with_padding_equal_transformers(
    model: GPT, peer: torch.nn.Module, input_ids: Tensor, padding_mask: Tensor
) -> None:
    expected = peer_logits(peer, input_ids, padding_mask[:, None, None, :])
    found = logits(model, input_ids, causal=False, padding_mask=padding_mask)
    assert largest_difference(found[padding_mask], expected[padding_mask]) < 1e-4


@pytest.mark.parametrize("causal", [True, False])
def test_logits_within_documents_equal_transformers(
    model: GPT, peer: torch.nn.Module, input_ids: Tensor, document_ids: Tensor, causal: bool
) -> None:
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    expected = peer_logits(peer, input_ids, same & causal_mask(causal))
    found = logits(model, input_ids, causal=causal, document_ids=document_ids)
    assert largest_difference(found, expected) < 1e-4


@pytest.mark.parametrize("causal", [True, False])
def test_documents_and_padding_together_equal_transformers(
    model: GPT, peer: torch.nn.Module, input_ids: Tensor, document_ids: Tensor, padding_mask: Tensor, causal: bool
) -> None:
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    visible = same & causal_mask(causal) & padding_mask[:, None, None, :]
    expected = peer_logits(peer, input_ids, visible | torch.eye(LENGTH, dtype=torch.bool))
    found = logits(model, input_ids, causal=causal, document_ids=document_ids, padding_mask=padding_mask)
    assert largest_difference(found[padding_mask], expected[padding_mask]) < 1e-4
    assert found.isfinite().all()


@pytest.mark.parametrize("causal", [True, False])
def test_bias_of_the_keys_changes_nothing_and_has_no_gradient(model: GPT, input_ids: Tensor, causal: bool) -> None:
    model = copy.deepcopy(model)
    attention = model.blocks[0].attention
    before = logits(model, input_ids, causal=causal)
    with torch.no_grad():
        attention.qkv.bias[CONFIG.hidden_dim : 2 * CONFIG.hidden_dim] += 1.0
    assert largest_difference(logits(model, input_ids, causal=causal), before) < 1e-4
    model.head(model(input_ids, causal=causal), input_ids).backward()
    query, key, value = attention.qkv.bias.grad.chunk(3)
    assert not key.any()
    assert query.all()
    assert value.all()


def test_gradients_equal_transformers(model: GPT, peer: torch.nn.Module, input_ids: Tensor) -> None:
    peer(input_ids, labels=input_ids).loss.backward()
    targets = input_ids[:, 1:]
    (model.head(model(input_ids)[:, :-1], targets) / targets.numel()).backward()
    found = model.blocks[0].attention.qkv.weight.grad.t()
    torch.testing.assert_close(found, peer.transformer.h[0].attn.c_attn.weight.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        model.token_embedding.weight.grad[:VOCAB], peer.transformer.wte.weight.grad, rtol=1e-3, atol=1e-5
    )
    assert not model.token_embedding.weight.grad[VOCAB:].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("with_mask", [True, False])
def test_attention_is_the_formula_in_float64(causal: bool, with_mask: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(CONFIG, layer=0).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    x = torch.randn(BATCH, LENGTH, CONFIG.hidden_dim, dtype=torch.float64)
    visible = causal_mask(causal).expand(BATCH, 1, -1, -1)
    if with_mask:
        visible = visible & (torch.rand(BATCH, 1, LENGTH, LENGTH) > 0.3) | torch.eye(LENGTH, dtype=torch.bool)
    found = attention(x, None, visible if with_mask else None, causal and not with_mask, None)
    q, k, v = (part.unflatten(-1, (CONFIG.num_heads, -1)).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(CONFIG.width_per_head)).masked_fill(~visible, -math.inf)
    expected = attention.projection((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert (found - expected).abs().max() < 1e-12


def test_float32_attention_is_the_float64_formula_within_rounding(model: GPT, input_ids: Tensor) -> None:
    exact = logits(sharp_model().double(), input_ids)
    assert largest_difference(logits(model, input_ids).double(), exact) < 1e-4


def test_cache_gives_the_hidden_states_of_the_whole_sequence(model: GPT, input_ids: Tensor) -> None:
    cache = KeyValueCache(CONFIG, BATCH, CONFIG.max_positions)
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in input_ids.split([5, 1, 7, 1, 6], dim=1)]
        assert (torch.cat(pieces, 1) - model(input_ids)).abs().max() < 1e-4


def test_padding_of_the_vocabulary_is_in_no_logits(model: GPT, input_ids: Tensor) -> None:
    assert padded_vocab_size(VOCAB) == 128
    assert padded_vocab_size(128) == 128
    assert logits(model, input_ids).shape[-1] == VOCAB


def test_tied_head_holds_the_embedding_itself() -> None:
    tied, untied = GPT(CONFIG, VOCAB), GPT(CONFIG.model_copy(update={"tie_embeddings": False}), VOCAB)
    assert tied.head.weight is tied.token_embedding.weight
    assert untied.head.weight is not untied.token_embedding.weight
    assert len(list(untied.parameters())) == len(list(tied.parameters())) + 1


def test_dropout_acts_in_training_only(input_ids: Tensor) -> None:
    model = sharp_model(CONFIG.model_copy(update={"dropout": 0.5}))
    assert torch.equal(model(input_ids), model(input_ids))
    model.train()
    assert not torch.equal(model(input_ids), model(input_ids))


# Dynamo instantiates autograd functions and looks at gradients of tensors that have none; torch's own warnings.
quiet_dynamo = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute:UserWarning")


@quiet_dynamo
@pytest.mark.parametrize(
    ("causal", "lora", "is_half", "tolerance"),
    [(True, None, True, 1e-2), (False, LoraConfig(rank=2), False, 1e-5)],
    ids=["bfloat16", "adapters"],
)
def test_equal_blocks_are_compiled_once_compute_the_same_and_keep_no_copies_of_weights(
    input_ids: Tensor, causal: bool, lora: LoraConfig | None, is_half: bool, tolerance: float
) -> None:
    torch._dynamo.reset()
    counters.clear()
    # more blocks than graphs that torch makes of one function (8 in 2.13.0)
    plain = sharp_model(CONFIG.model_copy(update={"num_layers": 9, "lora": lora})).train()
    compiled, kept = copy.deepcopy(plain), []
    compiled.compile(backend="aot_eager")

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    hidden = []
    for model, hook in ((plain, lambda tensor: tensor), (compiled, keep)):
        seen = torch.autograd.graph.saved_tensors_hooks(hook, lambda tensor: tensor)
        with seen, torch.autocast("cpu", enabled=is_half):
            hidden.append(model(input_ids, causal=causal))
        hidden[-1].float().square().mean().backward()
    pairs = [hidden, *((a.grad, b.grad) for a, b in zip(plain.parameters(), compiled.parameters(), strict=True))]
    for expected, found in (pair for pair in pairs if pair[0] is not None):
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    weights = [layer.weight for layer in compiled.modules() if isinstance(layer, torch.nn.Linear)]
    shapes = {shape for weight in weights for shape in (weight.shape, weight.shape[::-1])}
    assert all(isinstance(tensor, torch.nn.Parameter) for tensor in kept if tensor.shape in shapes)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    compiled.eval()
    with torch.no_grad():
        compiled(input_ids, causal=causal)  # the graph of a validation, which has no gradients
    assert (counters["stats"]["unique_graphs"], len(counters["graph_break"])) == (2, 0)


@quiet_dynamo
def test_head_compiles_inside_a_model() -> None:
    head = OutputHead(torch.nn.Parameter(torch.randn(128, 16)), VOCAB)
    hidden, targets = torch.randn(10, 16, requires_grad=True), torch.randint(0, VOCAB, (10,))
    found = torch.compile(head, backend="aot_eager")(hidden, targets)
    assert found.item() == pytest.approx(head(hidden, targets).item(), rel=1e-6)
    found.backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_loss_within_half_precision(input_ids: Tensor, dtype: torch.dtype) -> None:
    model = GPT(CONFIG, VOCAB)
    initialize(model, seed=3)
    expected = model.head(model(input_ids), input_ids).item()
    with torch.autocast("cpu", dtype):
        loss = model.head(model(input_ids), input_ids)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=5e-3)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_decayed_parameters_are_the_matrices() -> None:
    model = GPT(CONFIG.model_copy(update={"tie_embeddings": False}), VOCAB)
    decayed = decayed_parameter_names(model)
    assert decayed == {name for name, parameter in model.named_parameters() if parameter.dim() == 2}


NAMES_AND_SHAPES = [
    ("token_embedding.weight", (128, 32)),
    ("blocks.1.attention.qkv.weight", (96, 32)),
    ("blocks.0.mlp.down.weight", (32, 128)),
    ("blocks.0.mlp.down.bias", (32,)),
    ("final_norm.weight", (32,)),
]


@pytest.mark.parametrize(("name", "shape"), NAMES_AND_SHAPES)
def test_initial_values_are_the_same_in_whatever_ranges(name: str, shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    whole = initial_values(name, shape, 0, count, 7, CONFIG, VOCAB)
    for cuts in ([0, 1, 2, 9, count], [0, 8, 17, 30, count], [0, count // 3, count // 3, count]):
        pieces = [initial_values(name, shape, a, b, 7, CONFIG, VOCAB) for a, b in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(pieces), whole)


def test_initial_values_are_the_same_across_the_blocks_they_are_made_in() -> None:
    shape = (4096, 1024)
    whole = initial_values("blocks.0.mlp.up.weight", shape, 0, 4096 * 1024, 7, CONFIG, VOCAB)
    start, stop = 2**20 - 5, 2**21 + 3
    assert torch.equal(
        initial_values("blocks.0.mlp.up.weight", shape, start, stop, 7, CONFIG, VOCAB), whole[start:stop]
    )


def test_initial_values_have_the_moments_of_gpt2() -> None:
    def moments(name: str) -> tuple[float, float, float]:
        values = initial_values(name, (1000, 1000), 0, 10**6, 7, CONFIG, 1000)
        normed = values / values.std()
        return values.mean().item(), values.std().item(), normed.pow(4).mean().item()

    mean, std, kurtosis = moments("blocks.0.mlp.up.weight")
    assert abs(mean) < 1e-4
    assert std == pytest.approx(0.02, rel=5e-3)
    assert kurtosis == pytest.approx(3, abs=0.05)
    for name in ("blocks.0.mlp.down.weight", "blocks.1.attention.projection.weight"):
        assert moments(name)[1] == pytest.approx(0.02 / math.sqrt(2 * CONFIG.num_layers), rel=5e-3)


def test_seeds_and_names_give_unrelated_initial_values() -> None:
    def values(name: str, seed: int) -> Tensor:
        return initial_values(name, (100, 1000), 0, 10**5, seed, CONFIG, VOCAB)

    streams = [
        values("blocks.0.mlp.up.weight", 7),
        values("blocks.0.mlp.up.weight", 8),
        values("blocks.1.mlp.up.weight", 7),
    ]
    correlations = torch.corrcoef(torch.stack(streams)) - torch.eye(3)
    assert correlations.abs().max() < 0.015  # five standard deviations of 1e5 independent pairs


def test_initial_values_never_change() -> None:
    found = initial_values("blocks.0.attention.qkv.weight", (96, 32), 0, 4, 1234, CONFIG, VOCAB)
    torch.testing.assert_close(found, torch.tensor(GOLDEN), rtol=1e-5, atol=0)


GOLDEN = [-0.01970723457634449, 0.0034033937845379114, -0.0018508003558963537, -0.008386828005313873]


def test_initialized_model_starts_at_the_loss_of_a_uniform_guess(input_ids: Tensor) -> None:
    model = GPT(CONFIG, VOCAB)
    initialize(model, seed=1)
    assert model.head(model(input_ids), input_ids.flip(1)).item() == pytest.approx(
        input_ids.numel() * math.log(VOCAB), rel=0.03
    )
    assert not model.token_embedding.weight[VOCAB:].any()
    assert torch.equal(model.blocks[0].mlp_norm.weight, torch.ones(32))
    assert not model.final_norm.bias.any()


def test_a_loaded_model_is_the_saved_one(model: GPT, tmp_path: Path, input_ids: Tensor) -> None:
    save_huggingface(tmp_path, CONFIG, VOCAB, model.named_parameters())
    assert torch.equal(logits(load_huggingface(LocalFolder(tmp_path)).eval(), input_ids), logits(model, input_ids))
