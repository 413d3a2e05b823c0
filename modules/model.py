"""A Transformer of the GPT-2 or the Llama family.

Shapes: B batch, T positions, S attended positions (T and those in the cache), D width, V vocabulary; E examples
that rows hold one after another.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from modules.activation_checkpointing import runner
from modules.attention import Attention, KeyValueCache, Rotations, attention_mask
from modules.config_fields import ActivationCheckpointing
from modules.cross_entropy import linear_cross_entropy, linear_cross_entropy_stats
from modules.examples import Examples
from modules.initial_values import initial_values
from modules.layers import Embedding, Linear, dropout, feed_forward, norm
from modules.linear import linear
from modules.lora import LowRank, add_adapters
from modules.model_config import ModelConfig, padded_vocab_size
from modules.rotary import Rotary
from modules.token_rows import TrainedRows


class Block(nn.Module):
    """Attention and feed-forward layers, each preceded by its norm and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = norm(config)
        self.attention = Attention(config, layer)
        self.mlp_norm = norm(config)
        self.mlp = feed_forward(config)
        self.dropout = dropout(config)
        self.compiled: Callable[..., Tensor] | None = None
        """`compute` as a compiler has made it, which all blocks of a model share."""

    def forward(
        self,
        x: Tensor,
        rotations: Rotations | None,
        mask: Tensor | None,
        causal: bool,
        cache: KeyValueCache | None,
        examples: Examples | None,
    ) -> Tensor:
        # with a cache each call has another length, and would be compiled anew
        compute = Block.compute if self.compiled is None or cache is not None else self.compiled
        return compute(self, x, rotations, mask, causal, cache, examples)

    def compute(
        self,
        x: Tensor,
        rotations: Rotations | None,
        mask: Tensor | None,
        causal: bool,
        cache: KeyValueCache | None,
        examples: Examples | None,
    ) -> Tensor:
        """Return what `forward` does; apart from it, so that hooks on the module are not compiled."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotations, mask, causal, cache, examples))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class OutputHead(TrainedRows):
    """Map from hidden states to the loss or to logits. It owns its weight, so that ZeRO-3 gathers it for `forward`."""

    def __init__(self, weight: nn.Parameter, vocab_size: int) -> None:
        super().__init__()
        self.weight = weight
        self.trained_rows = None
        self.vocab_size = vocab_size
        self.compiles_loss = False
        """Whether the passes over the logits are compiled; see `modules.cross_entropy`."""

    def forward(
        self, hidden: Tensor, targets: Tensor | None = None, *, statistics: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the summed loss in nats of [..., D] for targets [...]; `logits` and `statistics` are other uses."""
        own = self.token_rows(hidden.device)
        if targets is None:
            logits = linear(hidden, self.weight, None)[..., : self.vocab_size]
            return logits if own is None else logits.index_copy(-1, own.tokens, linear(hidden, own.rows, None))
        inputs = hidden.flatten(0, -2), self.weight, targets.flatten(), self.vocab_size
        if statistics:
            return linear_cross_entropy_stats(*inputs, own=own)
        return linear_cross_entropy(*inputs, own=own, is_compiled=self.compiles_loss)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [..., vocab_size] of hidden states [..., D], all in memory at once: not for training."""
        return self(hidden)

    def statistics(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss in nats (float32) and the number of targets that are the most likely token (int64)."""
        return self(hidden, targets, statistics=True)


class GPT(nn.Module):
    """A Transformer with an output head, or with `score`, the head of a classifier (see `modules.classifier`).

    Its weights are uninitialised until `initialize` or a load sets them.

    Args:
        config: Shape of the Transformer.
        vocab_size: Number of tokens; the embedding rounds it up to a multiple of 64 rows.
    """

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        num_rows = padded_vocab_size(vocab_size)
        self.token_embedding = Embedding(num_rows, config.hidden_dim)
        learned = config.family == "gpt2"
        self.position_embedding = Embedding(config.max_positions, config.hidden_dim) if learned else None
        self.rotary = None if learned else Rotary(config)
        self.dropout = dropout(config)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = norm(config)
        if config.classifier is not None:  # and no output head: DDP refuses parameters that no loss uses
            self.score = Linear(config.hidden_dim, len(config.classifier.labels), bias=False)
        else:
            tied: Any = self.token_embedding.weight
            weight = tied if config.tie_embeddings else nn.Parameter(torch.empty(num_rows, config.hidden_dim))
            self.head = OutputHead(weight, vocab_size)
        self.activation_checkpointing: ActivationCheckpointing = "none"
        """What training computes again in the backward pass; see `modules.activation_checkpointing`."""
        self.is_compiled = False
        if config.lora is not None:
            add_adapters(self, config, config.lora)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the blocks: equal ones share what is compiled, so a model takes as long as one of its blocks.

        Attention is in the graph of a block where one kernel takes all examples of a row, and is left out of it where
        they are computed one by one. What has a cache is computed eagerly.
        """
        # DDP's own optimizer would cut a block at the borders of its buckets
        torch._dynamo.config.optimize_ddp = False
        compiled = torch.compile(Block.compute, *args, **kwargs)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.compiled = compiled
            block.attention.dot_product.compile_around_examples()
        self.is_compiled = True

    def forward(
        self,
        input_ids: Tensor,
        *,
        causal: bool = True,
        lengths: Sequence[int] | None = None,
        offsets: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        padding_mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return the hidden states after the final norm.

        Args:
            input_ids: [B, T], int64.
            causal: Each position attends to itself and those before it; otherwise to all positions.
            lengths: The rows hold examples of these lengths, one after another; none goes on into the next row. Each
                attends to itself alone. Equal lengths that are neighbours are computed together.
            offsets: int32 [E + 1], the first token of each of the E examples, counted through all rows, and B x T; None
                takes them from `lengths`, which takes a copy to the device.
            positions: [B, T] or [T], what is embedded as the positions; None counts them in each row, or in each
                example of `lengths`.
            document_ids: [B, S]; positions attend only to those with the same number. It takes a mask of T x S, so long
                rows are better described by `lengths`.
            padding_mask: [B, S], bool, True for real tokens; no position attends to another that is padding, and
                positions are counted over real tokens alone, so that padding may stand on either side.
            cache: Keys and values of earlier positions; those of `input_ids` are added to it. Only for causal
                attention.

        Returns:
            [B, T, D]. Rows of padding hold meaningless numbers.
        """
        length, past = input_ids.shape[1], cache.length if cache is not None else 0
        examples = None
        if lengths is not None:
            _check_rows(input_ids, lengths, document_ids, padding_mask, cache)
            examples = Examples(lengths, input_ids.device, offsets)
        if positions is None and examples is not None:
            positions = examples.positions().view_as(input_ids)
        elif positions is None:
            positions = _positions(length, past, padding_mask, input_ids.device)
        x = self.token_embedding(input_ids)
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        x = self.dropout(x)
        rotations = self.rotary.rotations(positions) if self.rotary is not None else None
        mask = attention_mask(length, past, causal, document_ids, padding_mask, input_ids.device)
        fused_causal = causal and mask is None and length > 1
        trains = self.training and torch.is_grad_enabled() and cache is None
        if trains and self.is_compiled and not x.requires_grad:
            x.requires_grad_()  # else the first block of a model with frozen embeddings would be compiled apart
        run = runner(self.activation_checkpointing if trains else "none", self.config.draws_masks)
        for block in self.blocks:
            x = run(block, x, rotations, mask, fused_causal, cache, examples)
        if cache is not None:
            cache.length += length
        return self.final_norm(x)


def decayed_parameter_names(model: nn.Module) -> set[str]:
    """Return the names of the matrices, found by module type because under ZeRO-3 every local parameter is flat."""
    found: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | OutputHead | LowRank):
            weights = (weight for weight, _ in module.named_parameters(recurse=False) if weight != "bias")
            found |= {f"{name}.{weight}".removeprefix(".") for weight in weights}
    return found


@torch.no_grad()
def initialize(model: GPT, seed: int) -> None:
    """Set every weight of an unsharded model on one device to its `initial_values`."""
    for name, parameter in model.named_parameters():
        values = initial_values(
            name, tuple(parameter.shape), 0, parameter.numel(), seed, model.config, model.vocab_size
        )
        parameter.copy_(values.view_as(parameter))


def _positions(length: int, past: int, padding_mask: Tensor | None, device: torch.device) -> Tensor:
    """Return the position of each token, int64 [T], or [B, T] where rows have padding."""
    if padding_mask is None:
        return torch.arange(past, past + length, device=device)
    return (padding_mask.long().cumsum(1) - 1).clamp_min(0)[:, past:]


def _check_rows(input_ids: Tensor, lengths: Sequence[int], *others: Tensor | KeyValueCache | None) -> None:
    if any(other is not None for other in others):
        raise ValueError("lengths: rows of examples take no cache, padding_mask or document_ids")
    num_rows, length = input_ids.shape
    ends = [*accumulate(lengths)]
    missing = set(range(length, num_rows * length + 1, length)).difference(ends)
    if missing or not ends or ends[-1] != num_rows * length or 0 in lengths:
        raise ValueError(f"lengths {list(lengths)} do not divide input_ids of shape {list(input_ids.shape)}")
