"""What the forward pass keeps for the backward pass, tensor by tensor, as the model's own code keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass

from modules.chunk_sizes import FEW_LOGITS, GELU_NUMBERS, chunk_rows
from modules.config import ObjectiveConfig
from modules.config_fields import ActivationCheckpointing, HeadLoss, Precision
from modules.model_config import ModelConfig, padded_vocab_size
from orchestrator.planning.weights import LinearLayer, linear_layers

_FLOAT32 = 4
_INDEX = 8
_LONG_IN_BFLOAT16 = 384
"""Positions from which attention in bfloat16 is trained in it on CPU; see `modules.attention`."""


@dataclass(frozen=True)
class Widths:
    """Bytes of an element under a precision."""

    weight: int
    """Weights of the model, their gradients, and the residual stream."""
    compute: int
    """Inputs and outputs of matrix products."""

    @classmethod
    def of(cls, precision: Precision) -> "Widths":
        if precision == "32":
            return cls(_FLOAT32, _FLOAT32)
        return cls(2 if precision.endswith("true") else _FLOAT32, 2)


@dataclass(frozen=True)
class Pass:
    """One forward pass of a micro-batch: its losses are summed before the backward pass."""

    num_tokens: int
    length: int
    """Tokens in a sequence."""
    head_tokens: int
    """Positions that enter the output head."""
    within_documents: bool = False
    """Whether attention stays within documents, or examples."""
    restarts_positions: bool = False
    """Whether each of them has positions of its own, which are then kept for every token."""

    @property
    def num_positions(self) -> int:
        """Positions that are embedded."""
        return self.num_tokens if self.restarts_positions else self.length


def passes(
    config: ObjectiveConfig | None,
    micro_batch: int,
    length: int,
    within_documents: bool = False,
    restarts_positions: bool = False,
) -> list[list[Pass]]:
    """Return the forward passes of a micro-batch in each phase; a training without an objective has causal ones."""
    tokens, apart = micro_batch * length, (within_documents, restarts_positions)
    if config is None:
        return [[Pass(tokens, length, tokens, *apart)]]
    masked = micro_batch * min(length - int(config.mlm_shift), max(1, round(length * config.mlm_probability)))
    heads: Mapping[str, int] = {"clm": tokens, "mlm": masked}
    return [
        [Pass(tokens, length, heads[name], *apart) for name, weight in phase.weights.items() if weight]
        for phase in config.phases
    ]


def activation_bytes(model: ModelConfig, of: Pass, precision: Precision, device: str) -> int:
    """Return the bytes that the blocks and the norms keep of one pass.

    Args:
        model: The shape.
        of: The pass.
        precision: `training.precision`.
        device: `cpu` or `cuda`.
    """
    widths = Widths.of(precision)
    per_token = model.num_layers * _block_bytes(model, of, widths, device) + _norm_bytes(model, widths)
    of_position = 2 * model.width_per_head * _FLOAT32 if model.family == "llama" else _INDEX
    shared = of_position * of.num_positions
    outside = _INDEX + _dropout_bytes(model, widths.weight, device)
    if _is_frozen_before(model):
        # the vocabulary is frozen, so the first norm and what is before it keep nothing
        outside = -_norm_bytes(model, widths)
        shared = 0 if model.family == "gpt2" else shared
    return of.num_tokens * (per_token + outside) + shared + model.num_layers * _adapter_copies(model, widths)


def kept_bytes(
    model: ModelConfig, of: Pass, precision: Precision, device: str, mode: ActivationCheckpointing = "none"
) -> int:
    """Return the same under `training.activation_checkpointing`, at the end of the forward pass."""
    if mode == "none":
        return activation_bytes(model, of, precision, device)
    widths = Widths.of(precision)
    outside = activation_bytes(model.model_copy(update={"num_layers": 0}), of, precision, device)
    if _is_frozen_before(model):  # where the first norm keeps nothing; its block keeps its input all the same
        outside += of.num_tokens * _norm_bytes(model, widths)
    return outside + of.num_tokens * model.num_layers * _kept_of_block(model, of, widths, device, mode)


def again_bytes(model: ModelConfig, of: Pass, precision: Precision, device: str, mode: ActivationCheckpointing) -> int:
    """Return what the backward pass adds where it has computed a block again: the rest of it, and gradients."""
    if mode == "none":
        return 0
    widths = Widths.of(precision)
    rest = _block_bytes(model, of, widths, device) - _kept_of_block(model, of, widths, device, mode)
    # of what GELU takes, once its result is let go, and of both that SwiGLU multiplies
    inner = model.feed_forward_dim * (1 if model.family == "gpt2" else 2)
    gradients = inner * widths.compute + model.hidden_dim * widths.weight
    sigmoid = 0
    if model.family == "gpt2" and device == "cpu" and precision == "32":  # by `modules.gelu`, which keeps its result
        gradients += inner * widths.compute
        sigmoid = widths.compute * min(of.num_tokens * inner, GELU_NUMBERS)  # of one thread
    return of.num_tokens * (max(0, rest) + gradients) + sigmoid


def _is_frozen_before(model: ModelConfig) -> bool:
    """Return whether nothing before the first block is trained."""
    return model.lora is not None and not model.lora.trained_tokens


def _kept_of_block(model: ModelConfig, of: Pass, widths: Widths, device: str, mode: ActivationCheckpointing) -> int:
    """Return what one block that is computed again keeps for each token: its input, and what `selective` adds."""
    of_input = model.hidden_dim * widths.weight
    if mode == "blocks":
        return of_input
    products = sum(layer.num_outputs + _kept_of_adapter(model, layer) for layer in linear_layers(model))
    return of_input + products * widths.compute + _kept_attention(model, of, widths, device)


def _kept_of_adapter(model: ModelConfig, layer: LinearLayer) -> int:
    """Return the numbers of an adapter's two products that are kept; see `modules.activation_checkpointing`."""
    hidden = _adapter_hidden(model, layer)
    first = hidden if 8 * layer.num_inputs >= hidden else 0
    return first + (layer.num_outputs if hidden and 8 * hidden >= layer.num_outputs else 0)


def _kept_attention(model: ModelConfig, of: Pass, widths: Widths, device: str) -> int:
    """Return the bytes of what attention gives, and of the sums of its softmax; with dropout it is computed again."""
    if model.dropout:
        return 0
    width = _FLOAT32 if _attends_in_float32(of, widths, device) else widths.compute
    return model.num_heads * (model.width_per_head * width + _FLOAT32)


def head_bytes(model: ModelConfig, vocab_size: int, of: Pass, precision: Precision) -> int:
    """Return the bytes that the head keeps: the gradients of its inputs and its weight, or of few logits its inputs."""
    widths = Widths.of(precision)
    if model.classifier is not None:
        return 0
    if precision == "32" and of.head_tokens * vocab_size <= FEW_LOGITS:
        # of torch's own operations: inputs, a copy of the tokens' rows, logarithms of probabilities, and their number;
        # targets lie with the token ids, which embeddings keep where they are trained
        inputs = _INDEX * of.head_tokens if _is_frozen_before(model) else _FLOAT32 * of.head_tokens * model.hidden_dim
        return inputs + _FLOAT32 * (vocab_size * model.hidden_dim + of.head_tokens * vocab_size + 1)
    return of.head_tokens * model.hidden_dim * widths.compute + head_weight_bytes(model, vocab_size)


def head_weight_bytes(model: ModelConfig, vocab_size: int) -> int:
    """Return the bytes of the gradient of the head's weight, which waits for that of an embedding with tied weights."""
    if model.classifier is not None or model.lora is not None:
        return 0
    return padded_vocab_size(vocab_size) * model.hidden_dim * _FLOAT32


def head_buffer_bytes(
    model: ModelConfig, vocab_size: int, of: Pass, precision: Precision, device: str, head_loss: HeadLoss = "eager"
) -> int:
    """Return the bytes that the head takes while it computes: a chunk of logits, and casts of what it multiplies.

    Compiled, the gradient of the logits takes their place, and there are no probabilities beside them; on CPU there are
    none beside logits in float32 either.
    """
    widths = Widths.of(precision)
    if model.classifier is not None:
        return 0
    columns = padded_vocab_size(vocab_size)
    rows = min(of.head_tokens, chunk_rows(columns, device, head_loss == "compiled"))
    is_in_place = head_loss == "compiled" or (device == "cpu" and widths.compute == _FLOAT32)
    chunk = rows * columns * (widths.compute + (0 if is_in_place else _FLOAT32))
    product = 0
    if device == "cpu" and not model.lora and widths.compute != _FLOAT32:
        product = columns * model.hidden_dim * widths.compute
    casts = 0
    if widths.weight != widths.compute:
        casts = (columns + of.head_tokens) * model.hidden_dim * widths.compute
    hidden = of.head_tokens * model.hidden_dim * widths.weight
    return chunk + product + casts + hidden


def _block_bytes(model: ModelConfig, of: Pass, widths: Widths, device: str) -> int:
    """Return the bytes of one block for each token."""
    norms = 2 * _norm_bytes(model, widths)
    inputs = sum(
        _adapter_hidden(model, layer) * widths.compute
        + (layer.num_inputs * widths.compute if _keeps_input(model, layer) else 0)
        for layer in linear_layers(model)
    )
    dropped = 2 * _dropout_bytes(model, widths.compute, device)
    return norms + inputs + _attention_bytes(model, of, widths, device) + _activation_function(model, widths) + dropped


def _norm_bytes(model: ModelConfig, widths: Widths) -> int:
    """Return what a norm keeps: its input, in float32 what it normalises, and its statistics."""
    width, is_trained = model.hidden_dim, model.lora is None
    if model.family == "gpt2":
        return width * widths.weight + 2 * _FLOAT32
    scaled = width * widths.weight if is_trained else 0  # what the trained weight is multiplied by
    return width * _FLOAT32 + scaled + _FLOAT32


def _attention_bytes(model: ModelConfig, of: Pass, widths: Widths, device: str) -> int:
    """Return what attention keeps but the input of its projection, which a linear layer keeps."""
    inner, kv = model.num_heads * model.width_per_head, model.kv_heads * model.width_per_head
    found = model.num_heads * _FLOAT32  # sums of the softmax
    in_float32 = _attends_in_float32(of, widths, device)
    if in_float32:
        found += (inner + 2 * kv + inner) * _FLOAT32
    else:
        found += (inner + 2 * kv) * widths.compute
        found += (inner + kv) * widths.compute if model.family == "llama" else 0  # rotated queries and keys
        projection = next(layer for layer in linear_layers(model) if layer.name == "attention.projection")
        if not _keeps_input(model, projection) or _attends_one_by_one(model, of, widths, device):
            found += inner * widths.compute
    if model.query_key_norm:
        of_float32 = 0 if widths.compute == _FLOAT32 and not in_float32 else (inner + kv) * _FLOAT32
        found += of_float32 + (inner + kv) * widths.compute + (model.num_heads + model.kv_heads) * _FLOAT32
    return found


def _attends_one_by_one(model: ModelConfig, of: Pass, widths: Widths, device: str) -> bool:
    """Return whether the results of documents are put together, which leaves them in memory twice.

    One kernel takes all of them where there is FlashAttention; see `modules.examples`.
    """
    has_kernel = device == "cuda" and widths.compute != _FLOAT32 and not model.dropout
    return of.within_documents and not has_kernel


def _attends_in_float32(of: Pass, widths: Widths, device: str) -> bool:
    return device == "cpu" and widths.compute == 2 and of.length < _LONG_IN_BFLOAT16


def _activation_function(model: ModelConfig, widths: Widths) -> int:
    """Return what GELU or SwiGLU keeps but the input of the layer after it."""
    return model.feed_forward_dim * widths.compute * (1 if model.family == "gpt2" else 3)


def _dropout_bytes(model: ModelConfig, width: int, device: str) -> int:
    """Return the mask of one dropout: of the values' own type on CPU, of bytes elsewhere."""
    return model.hidden_dim * (width if device == "cpu" else 1) if model.dropout else 0


def _keeps_input(model: ModelConfig, layer: LinearLayer) -> bool:
    """Return whether a linear layer or its adapter keeps its input, which a frozen layer does not."""
    return model.lora is None or bool(layer.adapted)


def _adapter_hidden(model: ModelConfig, layer: LinearLayer) -> int:
    return 0 if model.lora is None else model.lora.rank * len(layer.adapted)


def _adapter_copies(model: ModelConfig, widths: Widths) -> int:
    """Return the bytes of one block's adapters' weights, put together for their two products."""
    return sum(
        _adapter_hidden(model, layer) * (layer.num_inputs + layer.num_outputs) * widths.weight
        for layer in linear_layers(model)
    )
