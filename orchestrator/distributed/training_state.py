"""The training state as flat float32 ranges of each trained parameter: master weights and optimizer moments.

The form is the same for one process, DDP and every ZeRO stage; checkpoints and initial weights use nothing else. Frozen
parameters have no state: they have no master weight, and are filled at every start. Only this module,
`strategy`, `whole_copy` and `zero_muon` use DeepSpeed.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from orchestrator.distributed.collectives import share_tensors
from orchestrator.distributed.layout import Group, Layout, end_to_end

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

    def layout(self) -> Layout:
        """Return which ranks own what, the same on every rank."""
        ...

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        """Fill what this rank owns; with 0 `optimizer_steps` there are no moments yet."""
        ...

    def complete(self) -> None:
        """Fill what this rank holds besides from the other ranks, which all have loaded; all call this together.

        So each byte of a checkpoint is read from the store once, whatever the number of workers.
        """
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
    """One process or DDP: every rank holds the whole state, and owns an equal stretch of it.

    A share of each tensor would be as many bytes, and an index of a line for each tensor in every rank's file.
    """

    def __init__(self, model: nn.Module, optimizer: Any, rank: int, world_size: int) -> None:
        self._parameters, self._frozen = _trained_and_frozen(model)
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        self._state = self._optimizer.state
        self._rank, self._world_size = rank, world_size
        self._sizes = {name: parameter.numel() for name, parameter in self._parameters.items()}
        self._group = end_to_end(self._sizes, world_size)

    def owned(self) -> Iterator[Fragment]:
        return self._owned_by(self._rank)

    def _owned_by(self, rank: int) -> Iterator[Fragment]:
        for name, start, stop in self._group.held_by(rank, self._sizes):
            for kind, tensor in self._tensors(self._parameters[name]).items():
                yield Fragment(name, kind, start, stop, tensor.detach().view(-1)[start:stop])

    def layout(self) -> Layout:
        return [self._group]

    def _tensors(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self._state.get(parameter, {})
        return {MASTER: parameter, **{kind: state[kind] for kind in MOMENTS if kind in state}}

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        # all of it is filled by `complete`; zeroing it first would touch fresh memory twice
        _begin_moments(self._optimizer, _groups(self._optimizer), optimizer_steps, torch.empty_like)
        reader.fill(self.owned())

    def complete(self) -> None:
        for rank in range(self._world_size):
            share_tensors((fragment.view for fragment in self._owned_by(rank)), rank)

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

    def layout(self) -> Layout:
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        zero = self._zero
        groups = zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, zero.partition_size, strict=True)
        return [
            Group({names[id(parameter)]: int(start) for parameter, start in zip(held, starts, strict=True)}, int(share))
            for held, starts, share in groups
        ]

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        groups = self._zero.optimizer.param_groups
        partitions = zip(groups, self._zero.single_partition_of_fp32_groups, strict=True)
        _begin_moments(self._zero.optimizer, partitions, optimizer_steps)
        reader.fill(self.owned())

    def complete(self) -> None:
        # the working weights as after a step: this rank's from its master weights, and then those of all ranks
        self._zero.update_lp_params()

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
            for kind in MOMENTS:
                with suppress(KeyError, ValueError):  # before the first step none, and Muon has but one
                    views[kind] = safe_get_local_optimizer_state(parameter, kind)
            for kind, view in views.items():
                if view is not None:
                    yield Fragment(name, kind, start, stop, view.detach().view(-1)[: stop - start])

    @staticmethod
    def _range(parameter: Any) -> tuple[int, int]:
        size = parameter.ds_tensor.ds_numel
        rank = torch.distributed.get_rank(parameter.ds_process_group)
        return min(rank * size, parameter.ds_numel), min((rank + 1) * size, parameter.ds_numel)

    def layout(self) -> Layout:
        return [Group({name: 0}, max(1, held.ds_tensor.ds_numel)) for name, held in self._parameters.items()]

    def load(self, reader: StateReader, optimizer_steps: int) -> None:
        zero = self._zero
        groups = (zero.optimizer.param_groups[zero.sub_group_to_group_id[i]] for i in range(len(zero.fp16_groups)))
        partitions = zip(groups, zero.fp32_partitioned_groups_flat, strict=True)
        _begin_moments(zero.optimizer, partitions, optimizer_steps)
        reader.fill(itertools.chain(self.owned(), self._working_weights(self._parameters)))

    def complete(self) -> None:
        """Nothing to do: a rank holds only what it owns."""

    def fill_frozen(self, reader: StateReader) -> None:
        reader.fill(self._working_weights(self._frozen))

    def _working_weights(self, parameters: dict[str, Any]) -> Iterator[Fragment]:
        for name, parameter in parameters.items():
            start, stop = self._range(parameter)
            yield Fragment(name, MASTER, start, stop, parameter.ds_tensor.data.view(-1)[: stop - start])


def _groups(optimizer: Any) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Yield each parameter of an optimizer with its group."""
    return ((group, parameter) for group in optimizer.param_groups for parameter in group["params"])


def _begin_moments(
    optimizer: Any,
    weights: Iterable[tuple[dict[str, Any], Tensor]],
    optimizer_steps: int,
    like: Callable[..., Tensor] = torch.zeros_like,
) -> None:
    """Create the moments of weights, given with their groups, for `load` to fill; before the first step there are none.

    By default they are zeros, because `load` does not fill the padding of ZeRO's flat partitions.
    """
    optimizer.state.clear()
    for group, weight in weights if optimizer_steps else ():
        moments = {kind: like(weight, requires_grad=False) for kind in _moments_of(group)}
        if not group.get("muon"):  # as torch's AdamW creates it before a first step
            moments["step"] = torch.tensor(float(optimizer_steps), dtype=torch.float32, device=weight.device)
        optimizer.state[weight] = moments


def _moments_of(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the kinds of moments that an optimizer keeps for the parameters of a group."""
    return MOMENTS[:1] if group.get("muon") else MOMENTS
