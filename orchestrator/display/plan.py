"""What `orchestrator plan` shows: tables that fit into 80 columns, and a line for everything that is not known."""

from collections.abc import Callable, Iterator
from typing import get_args

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from modules.config import ActivationCheckpointing
from orchestrator.display.terminal import new_console, new_table, print_line
from orchestrator.display.units import count, duration, percent, size
from orchestrator.planning.advice import nothing_fits
from orchestrator.planning.flops import Flops, six_n
from orchestrator.planning.memory import activations_with, not_reckoned
from orchestrator.planning.plan import Plan, Range, StrategyPlan
from orchestrator.planning.speed import flops_per_token, optimizer_flops
from orchestrator.planning.weights import by_part, num_elements

_DAY = 86400.0
_SMALL = 1e9


def show_plan(plan: Plan) -> None:
    """Print the plan."""
    console = new_console()
    console.print(_model_table(plan))
    console.print(_memory_table(plan))
    if plan.setting.num_workers > 1:
        console.print(_traffic_table(plan))
    console.print(_cost_table(plan))
    if plan.sources:
        console.print(_source_table(plan))
    for line in _notes(plan):
        print_line(line)


def _model_table(plan: Plan) -> Table:
    setting = plan.setting
    table = new_table("Model")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("share", justify="right")
    total = num_elements(setting.weights)
    for part, number in by_part(setting.weights).items():
        table.add_row(part, f"{number:,}", percent(number / total))
    table.add_row("all", f"{total:,}", "", style="bold")
    if setting.num_frozen:
        table.add_row("trained", f"{setting.num_trained:,}", percent(setting.num_trained / total))
    flops = flops_per_token(setting)
    table.add_section()
    for name, value, share in _flops_rows(plan, flops):
        table.add_row(name, value, share)
    return table


def _flops_rows(plan: Plan, flops: Flops) -> Iterator[tuple[str, str, str]]:
    yield "FLOPs a token", count(flops.total), ""
    yield "  forward", count(flops.forward), percent(flops.forward / flops.total)
    yield "  backward", count(flops.backward), percent(flops.backward / flops.total)
    rule = six_n(plan.setting.model, plan.setting.vocab_size)
    yield "  by the rule 6 N", count(rule), percent(rule / flops.total)
    if of_optimizer := optimizer_flops(plan.setting):
        of_step = plan.tokens_per_step * flops.total
        yield "Muon's FLOPs a step", count(of_optimizer), percent(of_optimizer / of_step)


def _memory_table(plan: Plan) -> Table:
    in_unit, unit = _unit(plan)
    table = _tight(new_table(f"Memory of a worker in {unit}, at the fullest moment of a step"))
    table.add_column("strategy", no_wrap=True)
    heads = ("weights", "grad-\nients", "opti-\nmizer", "activ-\nations", "head,\nloss", "buf-\nfers", "device", "host")
    for head in (*heads, "most\nseqs"):
        table.add_column(head, justify="right", no_wrap=True)
    for found in plan.strategies:
        parts = found.memory
        cells = (parts.weights, parts.gradients, parts.optimizer, parts.activations, parts.head, parts.buffers)
        style = "bold" if found.name == plan.chosen else "dim" if found.fits is False else ""
        total = in_unit(parts.on_device) + ("!" if found.fits is False else "")
        name = _marked(found, plan)
        table.add_row(name, *map(in_unit, cells), total, in_unit(parts.host), _most(found), style=style)
    table.caption = Text(_memory_caption(plan))
    table.caption_justify = "left"
    return table


def _unit(plan: Plan) -> tuple[Callable[[float], str], str]:
    """Return how bytes are shown in the table, and the unit: GB, or MB where a worker takes less than one GB."""
    if max(found.memory.on_device for found in plan.strategies) >= _SMALL:
        return _gb, "GB"
    return lambda num_bytes: f"{num_bytes / 1e6:,.0f}", "MB"


def _memory_caption(plan: Plan) -> str:
    setting, device = plan.setting, plan.device
    workers = "one worker" if setting.num_workers == 1 else f"each of {setting.num_workers:,} workers"
    lines = [
        f"A micro-batch has {setting.micro_batch:,} x {setting.length:,} tokens, precision {setting.precision}; "
        f"{setting.accumulation:,} in a step on {workers}."
    ]
    if device is not None and plan.device_bytes is not None:
        where = "" if device.is_gpu else ", for device and host together"
        lines.append(
            f"{device.name} has {device.memory_gigabytes:g} GB, of which tensors can take {_gb(plan.device_bytes)}"
            f"{where}. ! does not fit. seqs: the largest micro-batch that shares out the global batch."
        )
    return "\n".join(lines)


def _marked(found: StrategyPlan, plan: Plan) -> str:
    return found.name + "*" * (found.name == plan.chosen)


def _tight(table: Table) -> Table:
    """Return the table without lines between its columns, for those that would not fit into 80 characters."""
    table.box, table.padding, table.pad_edge = SIMPLE_HEAD, (0, 0, 0, 1), False
    return table


def _most(found: StrategyPlan) -> str:
    if found.largest_micro_batch is None:
        return "?"
    return f"{found.largest_micro_batch:,}" if found.largest_micro_batch else "none"


def _traffic_table(plan: Plan) -> Table:
    table = _tight(new_table(f"Between {plan.setting.num_workers:,} workers in a step"))
    table.add_column("strategy", no_wrap=True)
    kinds = ["all_reduce", "all_gather", "reduce_scatter"]
    if any(found.traffic.all_to_all for found in plan.strategies):  # of Muon under ZeRO-3
        kinds.append("all_to_all")
    for head in (*("-\n".join(kind.replace("_", "-").rsplit("-", 1)) for kind in kinds), "each\nsends", "takes"):
        table.add_column(head, justify="right", no_wrap=True)
    for found in plan.strategies:
        moved = found.traffic
        table.add_row(
            _marked(found, plan),
            *(size(part) if part else "-" for part in (getattr(moved, kind) for kind in kinds)),
            size(moved.sent(plan.setting.num_workers)),
            "?" if found.traffic_seconds is None else duration(found.traffic_seconds),
            style="bold" if found.name == plan.chosen else "",
        )
    return table


def _cost_table(plan: Plan) -> Table:
    table = new_table("Time and cost" + (f" with strategy={plan.chosen}" if plan.chosen else ""))
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in _cost_rows(plan):
        table.add_row(name, value)
    return table


def _cost_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "tokens in a step", f"{plan.tokens_per_step:,}"
    if plan.num_steps is not None:
        yield "steps", f"{plan.num_steps:,}"
        yield "tokens in all", count(plan.num_steps * plan.tokens_per_step)
    step = plan.step_seconds
    if step is not None:
        yield "time of a step", _between(step, duration)
        per_second = Range(plan.tokens_per_step / step.high, plan.tokens_per_step / step.low)
        yield "tokens per second", _between(per_second, count)
        yield "tokens per second and device", _between(_times(per_second, 1 / plan.setting.num_workers), count)
        if plan.utilization:
            yield "model FLOPs utilisation", _between(plan.utilization, percent)
    if step is not None and plan.num_steps is not None:
        yield from _totals(plan, _times(step, plan.num_steps))
    yield from _save_rows(plan)


def _totals(plan: Plan, seconds: Range) -> Iterator[tuple[str, str]]:
    yield "steps alone take", _between(seconds, _long)
    hours = _times(seconds, plan.setting.num_workers / 3600)
    yield "device hours", _between(hours, lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.2g}")
    price = plan.config.plan.price_per_hour
    if price is not None:
        yield f"cost at {price:g} an hour", _between(_times(hours, price), lambda value: f"{value:,.0f}")


def _save_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    found = plan.saves
    if found is None:
        return
    yield "checkpoint", size(found.num_bytes)
    if found.write_seconds is not None:
        yield "  until it is in the store", duration(found.write_seconds)
    if found.mtbf_seconds is not None:
        yield "mean time between faults", _long(found.mtbf_seconds)
    if found.cost_seconds is None or found.interval_seconds is None:
        return
    yield "  training waits for a save at least", duration(found.cost_seconds)
    yield "  best time between saves at least", duration(found.interval_seconds)
    if plan.step_seconds is not None:
        steps = Range(found.interval_seconds / plan.step_seconds.high, found.interval_seconds / plan.step_seconds.low)
        yield "  in steps", _between(steps, lambda value: f"{max(1, round(value)):,}")
    goodput = found.goodput(plan.config.plan.recovery_seconds)
    if goodput is not None:
        yield "  goodput at most", f"{100 * goodput:.2f} %"


def _source_table(plan: Plan) -> Table:
    table = new_table("Tokens of each source")
    table.add_column("source", overflow="fold")
    for head in ("taken", "share", "fewest it needs"):
        table.add_column(head, justify="right")
    for source in plan.sources:
        fewest = "1 sample" if source.fewest_tokens is None else count(source.fewest_tokens)
        table.add_row(source.name, count(source.num_tokens), percent(source.share), fewest)
    return table


def _notes(plan: Plan) -> Iterator[str]:
    yield from plan.notes
    if plan.config.strategy.name == "auto" and plan.advice:
        yield f"strategy=auto: {plan.advice}, the simplest that fits"
    elif plan.advice and plan.advice != plan.chosen:
        yield f"note: the simplest strategy that fits is {plan.advice}"
    elif plan.device_bytes and plan.advice is None:
        yield f"note: {nothing_fits(plan.setting, plan.device_bytes)}"
    if len(plan.setting.phases) > 1:
        yield "note: operations and times are those of the mean step over all phases"
    yield _on_activations(plan)
    yield from _beside(plan)
    yield from _unknown(plan)


def _on_activations(plan: Plan) -> str:
    """Return what the other settings of activation checkpointing would keep."""
    modes = get_args(ActivationCheckpointing)
    others = [mode for mode in modes if mode != plan.setting.activation_checkpointing]
    sizes = [f"{size(activations_with(plan.setting, mode))} with {mode}" for mode in others]
    chosen = plan.setting.activation_checkpointing
    return f"note: training.activation_checkpointing={chosen}; activations would be {' and '.join(sizes)}"


def _beside(plan: Plan) -> Iterator[str]:
    """Yield what the figures of memory leave out."""
    config, on_gpu = plan.config, plan.setting.device == "cuda"
    if on_gpu and plan.offloads:
        yield ("note: whether the host's memory is enough is not known here; each worker takes what stands under host")
    for name in not_reckoned(config.strategy.deepspeed):
        yield f"note: strategy.deepspeed.{name} is not reckoned with"
    if len(config.cluster.worker_counts) > 1:
        yield f"note: reckoned with the fewest workers, {plan.setting.num_workers:,}, which need the most memory each"
    if on_gpu:
        yield (
            "note: the memory that CUDA and NCCL take themselves, often 1 to 3 GB, is in no column; the formulas were "
            "held against processors and one training on a GPU"
        )
    elif config.model.dropout:
        yield "note: with dropout, attention on a processor keeps more than is reckoned here"
    if plan.setting.device == "cpu" and config.training.precision.startswith("bf16"):
        yield (
            f"note: training.precision={config.training.precision} takes a processor with AVX-512 BF16 or AMX; others "
            "emulate bfloat16, with AVX2 in eleven times the time of training.precision=32"
        )
    if config.training.compile:
        yield "note: a compiled model may keep less than is reckoned here"


def _unknown(plan: Plan) -> Iterator[str]:
    if plan.device is None:
        yield "not known: the device (device=h100, …), so neither what fits, nor time and cost"
        return
    if plan.device_bytes is None:
        yield "not known: the device's memory (device.memory_gigabytes), so not what fits"
    if any(found.traffic_seconds is None for found in plan.strategies):
        yield "not known: the link between nodes (link=infiniband_ndr, …), so not the time of communication"
    if plan.chosen is None or plan.chosen_fits is False:
        yield "not shown: time and cost, since the strategy does not fit"
    elif plan.step_seconds is None and plan.has_speed:
        yield "not shown: time and cost, since the time of communication is a part of them"
    elif plan.step_seconds is None and plan.offloads:
        yield (
            f"not known: how long the host takes for the optimizer's step of {plan.chosen}; give plan.utilization for "
            "time and cost"
        )
    elif plan.step_seconds is None:
        yield (
            "not known: how fast this device computes in this precision, since no published run says so; give "
            "plan.utilization for time and cost"
        )
    elif plan.config.plan.utilization is None:
        hidden = "communication and, of compiled blocks, launches" if plan.config.training.compile else "communication"
        yield (
            f"note: speeds are those of published runs of other trainers on this kind of device, from {hidden} "
            "that the computation hides to those that it does not"
        )
    if plan.num_steps is None:
        yield "not known: the number of steps, which follows from the rows (finetune.num_epochs)"
    if plan.saves is not None and plan.saves.write_seconds is None:
        yield "not known: the store's speed (plan.store_gigabytes_per_second), so not when a checkpoint is stored"


def _times(found: Range, factor: float) -> Range:
    return Range(found.low * factor, found.high * factor)


def _between(found: Range, shown: Callable[[float], str]) -> str:
    low, high = shown(found.low), shown(found.high)
    return low if low == high else f"{low} to {high}"


def _long(seconds: float) -> str:
    """Return a duration in days from two days on."""
    return f"{seconds / _DAY:,.1f} days" if seconds >= 2 * _DAY else duration(seconds)


def _gb(num_bytes: float) -> str:
    value = num_bytes / 1e9
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
