"""Muon for the matrices of the blocks, which orthogonalises their momentum, and AdamW for everything else.

Shapes: N matrices of one shape, R rows, C columns.

Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/; the scale is Liu et al. 2025, arXiv 2502.16982, section
2.2. One process computes what `torch.optim.Muon` does with `adjust_lr_fn="match_rms_adamw"`, equal shapes together.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_EPSILON = 1e-7
_RMS_OF_ADAMW = 0.2
"""Root mean square of AdamW's usual update, in units of the learning rate."""
_BATCH_ELEMENTS = 2**24
"""Most elements that are orthogonalised together, which bounds the memory for any number of layers."""


class Shards(Protocol):
    """Brings together matrices that lie in flat ranges of several workers, as ZeRO divides them."""

    def replace(self, flat: Tensor, update: Tensor, function: Callable[[list[Tensor]], list[Tensor]]) -> None:
        """Put `function` of each matrix times `scale_of` in its place in `update`, this worker's range of all of them.

        Args:
            flat: The weights, of the same range.
            update: As many numbers, which are overwritten.
            function: Of some whole matrices at a time, those that this worker orthogonalises.
        """
        ...


class Muon(torch.optim.AdamW):
    """Muon for the groups with `muon=True` (and `momentum`), AdamW fused into one kernel for all others.

    The momentum is an exponential mean of the gradients, and is kept as `exp_avg`.
    """

    def __init__(self, groups: list[dict[str, Any]], **adamw: Any) -> None:
        super().__init__(groups, fused=True, **adamw)
        self.shards: Shards | None = None
        """Set where a worker holds flat ranges of the matrices."""
        self.num_orthogonalized = 0
        """Matrices that this process has orthogonalised, over all steps."""
        self._is_skipped: Tensor | None = None
        """Whether the step leaves everything as it is, bool [] on the device; None if that was not asked."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all weights, or none if `found_inf` is set and not 0, for which this process does not wait."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        self._is_skipped = None if found_inf is None else found_inf != 0
        groups = self.param_groups
        for group in groups:
            if group.get("muon"):
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        momentum, rate, decay = group["momentum"], group["lr"], group["weight_decay"]
        trained = [weight for weight in group["params"] if weight.grad is not None]
        for indices in _batches(trained):
            weights = [trained[index] for index in indices]
            updates = self._scaled_updates(weights, [self._averaged(weight, momentum) for weight in weights])
            for weight, update in zip(weights, updates, strict=True):
                # of a flat range of all matrices, part by part, because of the copies
                for part, moves in zip(_parts(weight), _parts(update), strict=True):
                    moved = part if self._is_skipped is None else part.clone()
                    moved.mul_(1 - rate * decay).add_(moves, alpha=-rate)
                    if self._is_skipped is not None:
                        part.copy_(torch.where(self._is_skipped, part, moved))

    def _averaged(self, weight: Tensor, momentum: float) -> Tensor:
        """Return the mean of the gradients with Nesterov's momentum."""
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(weight)
        average = state["exp_avg"]
        if self._is_skipped is None:
            average.lerp_(gradient, 1 - momentum)
            return gradient.lerp(average, momentum)
        # of equal numbers, the mean stays what it is
        copy = torch.where(self._is_skipped, average, gradient)
        average.lerp_(copy, 1 - momentum)
        return copy.lerp_(average, momentum)

    def _scaled_updates(self, weights: Sequence[Tensor], updates: Sequence[Tensor]) -> list[Tensor]:
        if self.shards is None:
            return [update.float().mul_(scale_of(update.shape)) for update in self._orthogonalized(updates)]
        (flat,), (update,) = weights, updates
        self.shards.replace(flat, update, self._orthogonalized)
        return [update]

    def _orthogonalized(self, matrices: Sequence[Tensor]) -> list[Tensor]:
        self.num_orthogonalized += len(matrices)
        return orthogonalized(matrices)


def dtype_of_products(device: torch.device) -> torch.dtype:
    """Return what the iterations compute in.

    Processors without bfloat16 of their own took 30 times as long with it as with float32.
    """
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def orthogonalized(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return about U V^T of each matrix U S V^T: its singular values, large and small, become about 0.7 to 1.2.

    Equal shapes are computed together, whichever side is the longer one.

    Args:
        matrices: [R, C] each, of any shapes.

    Returns:
        The same shapes, in `dtype_of_products`.
    """
    results = list(matrices)
    for indices in _batches(matrices):
        wide = torch.stack([_wide(matrices[index]) for index in indices])
        updates = newton_schulz(wide.to(dtype_of_products(wide.device)))
        for index, update in zip(indices, updates.unbind(), strict=True):
            results[index] = update if matrices[index].shape == update.shape else update.mT
    return results


def scale_of(shape: Sequence[int]) -> float:
    """Return what gives an orthogonal matrix of this shape the root mean square of AdamW's updates."""
    return _RMS_OF_ADAMW * math.sqrt(max(shape))


def newton_schulz(x: Tensor) -> Tensor:
    """Return the orthogonalised matrices [N, R, C], R <= C, by five iterations of an odd polynomial of degree 5."""
    a, b, c = _COEFFICIENTS
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_(min=_EPSILON)
    for _ in range(_NUM_ITERATIONS):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return views of a matrix, or of so many rows or numbers as are orthogonalised together."""
    per_row = math.prod(tensor.shape[1:])
    return tensor.split(max(1, _BATCH_ELEMENTS // per_row))


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def _batches(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield the indices of tensors that are computed together: of one shape, or its transpose."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        shapes.setdefault(tuple(sorted(tensor.shape)), []).append(index)
    for shape, indices in shapes.items():
        count = max(1, _BATCH_ELEMENTS // math.prod(shape))
        yield from (indices[first : first + count] for first in range(0, len(indices), count))
