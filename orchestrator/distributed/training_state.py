"""The training state as flat float32 ranges of each trained parameter: master weights and optimizer moments.

The form is the same for one process, DDP and every ZeRO stage; checkpoints and initial weights use nothing else. Frozen
parameters have no state: they have no master weight, and are filled at every start. Only this module and `strategy` use
DeepSpeed.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """A flat view of elements [start, stop) of one parameter's master weight or moment; float32 if owned."""

    parameter: str
    kind: str
    start: int
    stop: int
    view: Tensor


class StateReader(Protocol):
    """A source of any flat range of any parameter's state: a checkpoint, or the initial weights."""

    def fill(self, wanted: Iterable[Fragment]) -> None:
        """Copy the ranges that the fragments name into their views, which may have any dtype."""
        ...


class TrainingState(Protocol):
    """The state of the whole training, or this rank's part of it."""

    def owned(self) -> Iterator[Fragment]:
        """Yield the fragments that this rank writes; over all ranks every element occurs once."""
        ...

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        """Fill everything trained that this rank holds; with 0 `optimizer_steps` there are no moments yet."""
        ...

    def fill_frozen(self, reader: StateReader) -> None:
        """Fill what this rank holds of the frozen parameters."""
        ...


def training_state(trainer: Trainer, model: nn.Module) -> TrainingState:
    """Return access to the state of `model`, which `trainer` is fitting."""
    strategy: Any = trainer.strategy
    stage = getattr(strategy, "config", None) and strategy.config["zero_optimization"]["stage"]
    if not stage:
        return _WholeState(model, strategy.optimizers[0], strategy.global_rank, strategy.world_size)
    zero_optimizer = strategy.model.optimizer
    return (_Zero3State if stage == 3 else _Zero12State)(model, zero_optimizer)


def has_frozen(model: nn.Module) -> bool:
    """Return whether some parameters are not trained."""
    return not all(parameter.requires_grad for parameter in model.parameters())


def _trained_and_frozen(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the trained and the frozen parameters by name."""
    named = dict(model.named_parameters())
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    return trained, {name: parameter for name, parameter in named.items() if name not in trained}


def _whole(parameters: dict[str, Any]) -> Iterator[Fragment]:
    """Yield the whole of each parameter."""
    for name, parameter in parameters.items():
        yield Fragment(name, MASTER, 0, parameter.numel(), parameter.detach().view(-1))


class _WholeState:
    """One process or DDP: every rank holds the whole state, and writes an equal stretch of it.

    A share of each tensor would be as many bytes, and a manifest of a line for each tensor and rank.
    """

    def __init__(self, model: nn.Module, optimizer: Any, rank: int, world_size: int) -> None:
        self._parameters, self._frozen = _trained_and_frozen(model)
        self._state = getattr(optimizer, "optimizer", optimizer).state
        self._rank, self._world_size = rank, world_size

    def owned(self) -> Iterator[Fragment]:
        num_elements = sum(parameter.numel() for parameter in self._parameters.values())
        first, last = (num_elements * (self._rank + i) // self._world_size for i in (0, 1))
        position = 0
        for name, parameter in self._parameters.items():
            start, stop = (min(max(place - position, 0), parameter.numel()) for place in (first, last))
            position += parameter.numel()
            for kind, tensor in self._tensors(parameter).items() if start < stop else ():
                yield Fragment(name, kind, start, stop, tensor.detach().view(-1)[start:stop])

    def _tensors(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self._state.get(parameter, {})
        return {MASTER: parameter, **{kind: state[kind] for kind in MOMENTS if kind in state}}

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        self._state.clear()
        for parameter in self._parameters.values():
            if optimizer_steps:
                # all of it is filled below; zeroing it first would touch fresh memory twice
                self._state[parameter] = _fresh_moments(parameter, optimizer_steps, torch.empty_like)
        reader.fill(
            Fragment(name, kind, 0, parameter.numel(), tensor.detach().view(-1))
            for name, parameter in self._parameters.items()
            for kind, tensor in self._tensors(parameter).items()
        )

    def fill_frozen(self, reader: StateReader) -> None:
        reader.fill(_whole(self._frozen))


class _Zero12State:
    """ZeRO stages 1 and 2: each rank owns a range of the flattened float32 weights and their moments.

    Frozen parameters are in no partition, and whole on every rank.
    """

    def __init__(self, model: nn.Module, zero_optimizer: Any) -> None:
        self._parameters, self._frozen = _trained_and_frozen(model)
        self._zero = zero_optimizer

    def owned(self) -> Iterator[Fragment]:
        self._link_moments()
        for name, parameter in self._parameters.items():
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            address = mapping.lp_fragment_address
            for kind in (MASTER, *(mapping.optim_fragment or ())):
                view = mapping.get_hp_fragment(None if kind == MASTER else kind)
                yield Fragment(name, kind, address.start, address.start + address.numel, view.detach())

    def _link_moments(self) -> None:
        """Link every parameter to its moments: DeepSpeed links them when only the first group has any."""
        if all(self._zero.optimizer.state.get(flat) for flat in self._zero.single_partition_of_fp32_groups):
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        _begin_moments(self._zero.optimizer, self._zero.single_partition_of_fp32_groups, optimizer_steps)
        # the working weights as a whole, since what other ranks own is stale too
        reader.fill(itertools.chain(self.owned(), _whole(self._parameters)))

    def fill_frozen(self, reader: StateReader) -> None:
        reader.fill(_whole(self._frozen))


class _Zero3State:
    """ZeRO stage 3: rank r owns elements [r k, r k + k) of every parameter; the last range ends in padding.

    So it does of frozen ones, which have working weights alone.
    """

    def __init__(self, model: nn.Module, zero_optimizer: Any) -> None:
        self._parameters, self._frozen = _trained_and_frozen(model)
        self._zero = zero_optimizer

    def owned(self) -> Iterator[Fragment]:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        for name, parameter in self._parameters.items():
            start, stop = self._range(parameter)
            if start == stop:
                continue
            views = {MASTER: safe_get_local_fp32_param(parameter)}
            with suppress(KeyError, ValueError):  # no moments before the first step
                views |= {kind: safe_get_local_optimizer_state(parameter, kind) for kind in MOMENTS}
            for kind, view in views.items():
                if view is not None:
                    yield Fragment(name, kind, start, stop, view.detach().view(-1)[: stop - start])

    @staticmethod
    def _range(parameter: Any) -> tuple[int, int]:
        size = parameter.ds_tensor.ds_numel
        rank = torch.distributed.get_rank(parameter.ds_process_group)
        return min(rank * size, parameter.ds_numel), min((rank + 1) * size, parameter.ds_numel)

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        _begin_moments(self._zero.optimizer, self._zero.fp32_partitioned_groups_flat, optimizer_steps)
        reader.fill(itertools.chain(self.owned(), self._working_weights(self._parameters)))

    def fill_frozen(self, reader: StateReader) -> None:
        reader.fill(self._working_weights(self._frozen))

    def _working_weights(self, parameters: dict[str, Any]) -> Iterator[Fragment]:
        for name, parameter in parameters.items():
            start, stop = self._range(parameter)
            yield Fragment(name, MASTER, start, stop, parameter.ds_tensor.data.view(-1)[: stop - start])


def _begin_moments(optimizer: Any, partitions: Iterable[Tensor], optimizer_steps: int) -> None:
    """Create the moments of ZeRO's flat partitions for `load` to fill; before the first step there are none."""
    optimizer.state.clear()
    if optimizer_steps:
        # zeros, because `load` does not fill the padding
        optimizer.state.update({flat: _fresh_moments(flat, optimizer_steps) for flat in partitions})


def _fresh_moments(
    parameter: Tensor, optimizer_steps: int, like: Callable[..., Tensor] = torch.zeros_like
) -> dict[str, Tensor]:
    """Return AdamW's state as torch creates it before a first step, with the step counter set."""
    step = torch.tensor(float(optimizer_steps), dtype=torch.float32, device=parameter.device)
    return {"step": step, **{kind: like(parameter, requires_grad=False) for kind in MOMENTS}}
