"""How one parameter of ours lies in a checkpoint of `transformers`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """Tensors whose rows, one after another, are those of a parameter of ours."""

    tensors: tuple[tuple[str, int], ...]
    """Names of the tensors, each with its number of our rows."""
    is_transposed: bool = False
    """Whether the (single) tensor is [in, out] where ours is [out, in]."""
