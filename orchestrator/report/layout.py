"""Which figures are drawn, and in which plots: one layout for the page and for W&B."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

_TOKENS = "nats per token"


@dataclass(frozen=True)
class Panel:
    """One plot; every figure in it has the same unit."""

    title: str
    metrics: tuple[str, ...]
    """The first is drawn as a whole line, the others dashed."""
    unit: str
    shows_faults: bool = False
    may_be_logarithmic: bool = False
    """Where its values span powers of ten, so that small ones can be read, too."""


_PANELS = (
    Panel("Training loss", ("train/loss",), _TOKENS, shows_faults=True),
    Panel("Next-token loss", ("train/loss_clm", "val/loss_clm"), _TOKENS),
    Panel("Masked-token loss", ("train/loss_mlm", "val/loss_mlm"), _TOKENS),
    Panel("Validation loss", ("val/loss",), _TOKENS),
    Panel("Learning rate", ("optimizer/lr",), ""),
    Panel("Gradient norm", ("optimizer/grad_norm",), "", may_be_logarithmic=True),
    Panel("Tokens per second", ("throughput/tokens_per_second",), "tokens/s"),
)
_NOT_DRAWN = ("progress/", "throughput/", "checkpoint/", "faults/", "memory/", "goodput/", "train/", "optimizer/")
"""What is a table's figure or a part of a panel above, and no curve of its own."""


def panels(found: Iterable[str]) -> list[Panel]:
    """Return the plots for these metrics: the usual ones, then one for each further metric of a validation.

    A metric that is not among those found is left out, and so is a plot that then has none.
    """
    names = set(found)
    usual = [_with(panel, [name for name in panel.metrics if name in names]) for panel in _PANELS]
    drawn = {name for panel in _PANELS for name in panel.metrics}
    others = sorted(name for name in names - drawn if not name.startswith(_NOT_DRAWN))
    return [panel for panel in usual if panel.metrics] + [_panel(name, names) for name in others]


def missing(found: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return the title of each usual plot and those of its metrics that are not among these."""
    names = set(found)
    gaps = [(panel.title, [name for name in panel.metrics if name not in names]) for panel in _PANELS]
    return [(title, metrics) for title, metrics in gaps if metrics]


def _with(panel: Panel, metrics: list[str]) -> Panel:
    return replace(panel, metrics=tuple(metrics))


def _panel(name: str, names: set[str]) -> Panel:
    """Return the plot of a metric of a validation, over that of the training if it is a loss that both have."""
    what = name.removeprefix("val/loss_")
    if what != name and f"train/loss_{what}" in names:
        return Panel(f"{what.capitalize()} loss", (f"train/loss_{what}", name), _TOKENS)
    return Panel(_title(name), (name,), _unit(name))


def _title(name: str) -> str:
    group, _, metric = name.partition("/")
    words = metric.replace("_", " ")
    return f"Validation: {words}" if group == "val" else f"{group.capitalize()}: {words}"


def _unit(name: str) -> str:
    if "bits_per_byte" in name:
        return "bits per byte"
    return _TOKENS if "loss" in name else ""
