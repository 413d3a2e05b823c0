"""Which figures are drawn, and in which plots: one layout for the page and for W&B."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

_TOKENS = "nats per token"
_OF_TEXTS = "classification"
"""The objective whose loss is a mean over texts, not over tokens."""


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
    usual = [_with(panel, [name for name in panel.metrics if name in names], names) for panel in _PANELS]
    drawn = {name for panel in _PANELS for name in panel.metrics}
    others = sorted(name for name in names - drawn if not name.startswith(_NOT_DRAWN))
    return [panel for panel in usual if panel.metrics] + [_panel(name, names) for name in others]


def missing(found: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return the title of each usual plot and those of its metrics that are not among these."""
    names = set(found)
    gaps = [(panel.title, [name for name in panel.metrics if name not in names]) for panel in _PANELS]
    return [(title, metrics) for title, metrics in gaps if metrics]


def _with(panel: Panel, metrics: list[str], names: set[str]) -> Panel:
    """Return a panel with these of its metrics; a loss of all objectives is not of tokens alone if one is of texts."""
    is_of_all = metrics in (["train/loss"], ["val/loss"])
    unit = "nats" if is_of_all and f"{metrics[0]}_{_OF_TEXTS}" in names else panel.unit
    return replace(panel, metrics=tuple(metrics), unit=unit)


def _panel(name: str, names: set[str]) -> Panel:
    """Return the plot of a metric of a validation, over that of the training if it is a loss that both have."""
    what = name.removeprefix("val/loss_")
    if what != name and f"train/loss_{what}" in names:
        return Panel(f"{what.capitalize()} loss", (f"train/loss_{what}", name), _unit(name))
    return Panel(_title(name), (name,), _unit(name))


def _title(name: str) -> str:
    group, _, metric = name.partition("/")
    words = metric.replace("_", " ")
    return f"Validation: {words}" if group == "val" else f"{group.capitalize()}: {words}"


def _unit(name: str) -> str:
    if "bits_per_byte" in name:
        return "bits per byte"
    if name.endswith(f"loss_{_OF_TEXTS}"):
        return "nats per text"
    return _TOKENS if "loss" in name else ""
