"""One HTML page with everything in it: it needs no network and no script."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from orchestrator.display.units import duration, percent
from orchestrator.report import plots, stage_graph, tables
from orchestrator.report.comparison import best_first, comparison
from orchestrator.report.layout import panels
from orchestrator.report.plots import Plot, Series, plot
from orchestrator.report.sources import ReportedRun, Sources

_MOST_EARLIER_SAMPLES = 8


def report_page(title: str, place: str, sources: Sources) -> str:
    """Return the page.

    Args:
        title: What the report is about.
        place: Where the runs are.
        sources: What it shows.
    """
    # a model's texts, labels and names are shown as they are, whatever tags they hold
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        place=place,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        runs=[_run(run, colour) for run, colour in zip(sources.runs, _colours(sources), strict=True)],
        evaluations=sources.evaluations,
        graph=stage_graph.stage_graph(sources.stages) if sources.stages else None,
        plots=curves(sources),
        figures=tables.figures([run.metrics for run in sources.runs]),
        comparison=comparison(sources.runs),
        differences=tables.differences(sources.runs),
        sizes=plots,
        boxes=stage_graph,
        tables=tables,
    )


def curves(sources: Sources) -> list[Plot]:
    """Return the plots of all runs, several over one another; those with a colour of their own lie on top."""
    coloured = zip(sources.runs, _colours(sources), strict=True)
    series = [_series(run, colour) for run, colour in sorted(coloured, key=lambda pair: pair[1] != plots.OTHER)]
    names = {name for one in series for name in one.metrics}
    return [drawn for panel in panels(names) if (drawn := plot(panel, series)) is not None]


def _colours(sources: Sources) -> list[int]:
    """Return the colour of each run: where there are more runs than colours, the best ones have one of their own."""
    number = len(sources.runs)
    if number <= plots.NUM_COLOURS:
        return [*range(number)]
    ranks = {place: rank for rank, place in enumerate(best_first(sources.runs))}
    return [min(ranks[place], plots.OTHER) for place in range(number)]


def _series(run: ReportedRun, colour: int) -> Series:
    marks = [(one.step, one.text) for one in tables.happenings(run.state) if one.step is not None]
    return Series(run.label, colour, run.curves, marks)


def _run(run: ReportedRun, colour: int) -> dict[str, Any]:
    """Return what the page says of a run beside its curves."""
    state, events = run.state, run.state.events
    sampled = [entry for entry in run.history if entry.samples]
    earlier = sampled[:-1]
    every = -(-len(earlier) // _MOST_EARLIER_SAMPLES) or 1
    return {
        "label": run.label,
        "name": run.name,
        "command": run.command,
        "colour": colour,
        "is_detailed": colour != plots.OTHER,
        "state": state.state,
        "steps": run.steps,
        "loss": tables.number(run.metrics.get("train/loss")),
        "began": tables.moment(events[0]["time"]) if events else "",
        "time": duration(state.goodput.wall_seconds) if events else "",
        "goodput": percent(state.goodput.fraction) if events else "",
        "shares": tables.time_shares(state),
        "happenings": tables.happenings(state),
        "samples": sampled[-1] if sampled else None,
        "earlier_samples": earlier[::-every][::-1],
    }
