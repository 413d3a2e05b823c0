"""A whole copy of a model that ZeRO-3 has sharded, for what one worker computes without the others."""

from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from modules.model import GPT
from orchestrator.planning.advice import USABLE


def is_sharded(model: nn.Module) -> bool:
    """Return whether ZeRO-3 has sharded the model's parameters."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def copy_bytes(model: nn.Module) -> int:
    """Return the memory that `whole_copy` takes on a worker: the weights, and those of one layer for a while."""
    layers = [sum(map(_num_bytes, module.parameters(recurse=False))) for module in model.modules()]
    return sum(map(_num_bytes, model.parameters())) + max(layers)


def free_bytes(device: torch.device) -> float:
    """Return what this process may allocate on its device without coming close to the end of the memory."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return USABLE * (torch.cuda.mem_get_info(device)[0] + cached)
    return USABLE * psutil.virtual_memory().available


@torch.no_grad()
def whole_copy(model: GPT, is_kept: bool) -> GPT | None:
    """Gather each weight of a sharded model once; all ranks call this together.

    Args:
        is_kept: Whether this rank takes a copy. The others hold one layer at a time.

    Returns:
        The copy, in evaluation mode and not to be trained; None if it is not kept.
    """
    copies: dict[str, Tensor] = {}
    for name, parameter in _gathered(model):
        if is_kept:
            copies[name] = parameter.detach().clone()
    return _model_of(model, copies) if is_kept else None


def _gathered(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield each parameter with its name while it is whole."""
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        own: list[Any] = [each for each in module.parameters(recurse=False) if id(each) in names]
        # small ones stay whole on every rank, and would be cut up at the end
        with GatheredParameters([each for each in own if each.ds_status is ZeroParamStatus.NOT_AVAILABLE]):
            for parameter in own:
                yield names.pop(id(parameter)), parameter


def _model_of(model: GPT, weights: dict[str, Tensor]) -> GPT:
    with torch.device("meta"):
        whole = GPT(model.config, model.vocab_size)
    made: dict[int, nn.Parameter] = {}  # layers with tied weights share them
    for name, parameter in list(whole.named_parameters()):
        made[id(parameter)] = nn.Parameter(weights[name], requires_grad=False)
    for module in whole.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, made[id(parameter)])
    return whole.eval()


def _num_bytes(parameter: Any) -> int:
    return parameter.element_size() * getattr(parameter, "ds_numel", parameter.numel())
