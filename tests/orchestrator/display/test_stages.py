"""The stages of a pipeline as they run: a table that fits the terminal, and plain lines elsewhere."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from orchestrator.display import stages
from orchestrator.display.stages import StageRow, StagesDisplay


def row(name: str, state: str, why: str = "", **figures: str) -> StageRow:
    return StageRow(
        **{"step": "", "loss": "", "left": "", "seconds": "", **figures, "name": name, "state": state, "why": why}
    )


def on(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> io.StringIO:
    """Have the display write to a console with these settings, and return what it writes."""
    written = io.StringIO()
    monkeypatch.setattr(stages, "new_console", lambda: Console(file=written, **settings))
    return written


def test_elsewhere_there_is_one_line_for_each_change_of_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on(monkeypatch, force_terminal=False, width=80)
    with StagesDisplay("Pipeline p") as display:
        for rows in (
            [row("a", "running", seconds="1 s"), row("b", "waiting", "needs a")],
            [row("a", "running", step="5/10", seconds="2 s"), row("b", "waiting", "needs a")],
            [row("a", "running", "its node is gone; started anew"), row("b", "waiting", "needs a")],
            [row("a", "done", seconds="3 s"), row("b", "waiting", "waits for process 1 on x, which runs it")],
            [row("a", "done", seconds="3 s"), row("b", "failed", "no such model", seconds="1 s")],
        ):
            display.show(rows)
    assert written.getvalue().splitlines() == [
        "a  running",
        "a  running  its node is gone; started anew",
        "a  done  (3 s)",
        "b  waiting  waits for process 1 on x, which runs it",
        "b  failed  no such model  (1 s)",
    ]


def test_a_long_reason_leaves_names_and_figures_their_width(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on(monkeypatch, force_terminal=True, width=80, height=24, color_system=None, _environ={})
    with StagesDisplay("Pipeline p") as display:
        display.show(
            [row("sentiment", "running", "x" * 50 + " " + "y" * 200, step="100/600", loss="4.1234", left="3 s")]
        )
    assert "sentiment  running  100/600  4.1234" in written.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_each_stage_has_one_line_with_whole_figures_and_a_reason_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    written = on(monkeypatch, force_terminal=True, width=width, height=24, color_system=None, _environ={})
    name = "classification-of-packages-with-much-to-say"
    figures = {"step": "1200/15000", "loss": "3.4567", "left": "1h 12m", "seconds": "12m 4 s"}
    rows = [row(name, "running", "a reason that is as long as they can be " * 3, **figures) for _ in range(20)]
    with StagesDisplay("Pipeline p") as display:
        display.show(rows)
    lines = [line for line in written.getvalue().splitlines() if "classifi" in line]
    assert len(lines) % len(rows) == 0, "the table is drawn whole each time"
    assert all("running  1200/15000  3.4567  1h 12m  12m 4 s  a reason that" in line for line in lines)
    assert "stages:" not in written.getvalue(), "all of them fit"


def test_of_more_stages_than_fit_those_that_run_or_have_failed_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    written = on(monkeypatch, force_terminal=True, width=80, height=20, color_system=None, _environ={})
    rows = [row(f"stage{number}", "done") for number in range(500)]
    rows[300], rows[400] = row("runs", "running"), row("broken", "failed", "why")
    with StagesDisplay("Pipeline p") as display:
        display.show(rows)
    shown = written.getvalue()
    assert "runs" in shown
    assert "broken" in shown
    assert "500 stages: 498 done, 1 running, 1 failed" in shown
    assert 10 < len(set(re.findall(r"stage\d+", shown))) <= 16, "as many as the terminal has lines for"
