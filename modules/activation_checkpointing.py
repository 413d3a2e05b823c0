"""Activation checkpointing: what a block keeps for its backward pass, and what it computes again there.

Source: Chen et al. 2016, arXiv 1604.06174, keep the inputs of blocks; Korthikanti et al. 2022, arXiv 2205.05198, choose
by what an operation costs for each number that it gives.
"""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from modules.config_fields import ActivationCheckpointing

_FEWEST_INPUTS = 1 / 8
"""Inputs for each output below which a product costs too little to be kept, as that of an adapter's second matrix."""
_RIGHT = {"aten.mm.default": 1, "aten.addmm.default": 2, "mkldnn._linear_pointwise.default": 1}
"""Argument of each product of matrices that is its right side; the last one's is transposed."""
_ATTENTION = ("aten._scaled_dot_product_", "torch_attn._varlen_attn.")
_ADDITION = "aten.add_.Tensor"


def runner(mode: ActivationCheckpointing, draws_masks: bool) -> Callable[..., Tensor]:
    """Return what calls a block with its inputs, such that its backward pass computes again what it has not kept.

    The results are those of the block itself, bit for bit, and so are the gradients.

    Args:
        mode: `blocks` keeps the inputs of a block alone, `selective` also what its products and its attention give.
        draws_masks: Whether the block has dropout, whose masks are then drawn again from the same state.
    """
    return _call if mode == "none" else partial(_checkpointed, mode, draws_masks)


def _call(block: nn.Module, *inputs: Any) -> Tensor:
    return block(*inputs)


def _checkpointed(mode: ActivationCheckpointing, draws_masks: bool, block: nn.Module, *inputs: Any) -> Tensor:
    settings: dict[str, Any] = {"context_fn": _keeping_products} if mode == "selective" else {}
    has_hooks = any(module._forward_hooks for module in block.modules())
    # an early stop is an exception within a module, and leaves out the hooks with which ZeRO-3 releases its weights
    settings["early_stop"] = not has_hooks
    compute = partial(_then_anchored, block) if has_hooks else block
    return checkpoint(compute, *inputs, use_reentrant=False, preserve_rng_state=draws_masks, **settings)


def _then_anchored(block: nn.Module, *inputs: Any) -> Tensor:
    return _Anchor.apply(block(*inputs))


class _Anchor(torch.autograd.Function):
    """Gives what it is given, and has the block computed again before its backward pass begins.

    Else the first operation that needs something would have it done, after ZeRO-3 has gathered the weights for that
    operation, and the forward pass, which releases what it has used, would take them away from it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.new_empty(0))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        _ = ctx.saved_tensors
        return grad


def _keeping_products() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return the contexts of a block's forward pass and of its repetition.

    torch's own (`create_selective_checkpoint_contexts`) number all operations, and fail where ZeRO-3 gathers weights in
    one of the two passes alone (torch 2.13.0). These number the products.
    """
    kept: deque[_Kept] = deque()
    return _Keep(kept), _Take(kept)


class _Kept:
    """What an operation gave, and whether a bias was added to it in place, as DeepSpeed's linear layer does."""

    def __init__(self, out: Any) -> None:
        self.out = tree_map_only(Tensor, _detached, out)
        self.has_bias = False
        self._versions = self._current()

    def add_bias(self) -> None:
        self.has_bias = True

    def is_in(self, tensor: Any) -> bool:
        """Return whether a tensor is this one product, or a view of it."""
        return isinstance(self.out, Tensor) and self.out.untyped_storage()._cdata == tensor.untyped_storage()._cdata

    def unchanged(self) -> Any:
        assert self.has_bias or self._versions == self._current(), "a product that was kept has been changed in place"
        return self.out

    def _current(self) -> list[int]:
        return [leaf._version for leaf in tree_leaves(self.out) if isinstance(leaf, Tensor)]


def _detached(tensor: Tensor) -> Tensor:
    """Return a tensor without its place in the graph, which would keep what it was computed from.

    It counts its changes together with the given one, which a mode makes them do in this way alone (torch 2.13.0).
    """
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return tensor.detach()


class _Keep(TorchDispatchMode):
    """Keeps what products and attention give."""

    def __init__(self, kept: deque[_Kept]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if _is_kept(func, args, kwargs or {}):
            self._kept.append(_Kept(out))
        elif _name(func) == _ADDITION and self._kept and self._kept[-1].is_in(args[0]):
            self._kept[-1].add_bias()
        return out


class _Take(TorchDispatchMode):
    """Gives what was kept, in the same order, instead of computing it again."""

    def __init__(self, kept: deque[_Kept]) -> None:
        super().__init__()
        self._kept = kept
        self._last: _Kept | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_kept(func, args, kwargs or {}):
            self._last = self._kept.popleft()
            return self._last.unchanged()
        if _name(func) == _ADDITION and self._last and self._last.has_bias and self._last.is_in(args[0]):
            return args[0]
        return func(*args, **(kwargs or {}))


def _is_kept(operation: Any, arguments: tuple[Any, ...], settings: dict[str, Any]) -> bool:
    name = _name(operation)
    if name in _RIGHT:
        shape = arguments[_RIGHT[name]].shape
        num_inputs, num_outputs = reversed(shape) if name.startswith("mkldnn") else shape
        return num_inputs >= _FEWEST_INPUTS * num_outputs
    # with dropout it is computed again: left out, it would draw no masks, and dropout after it would draw others
    return name.startswith(_ATTENTION) and not _dropout(operation, arguments, settings)


@cache
def _name(operation: Any) -> str:
    return str(operation)


def _dropout(operation: Any, arguments: tuple[Any, ...], settings: dict[str, Any]) -> float:
    names = [argument.name for argument in operation._schema.arguments]
    return {**dict(zip(names, arguments, strict=False)), **settings}.get("dropout_p", 0.0)
