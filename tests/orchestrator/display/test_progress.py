"""What a user sees: plain lines in a file, a live bar on a terminal, tables and samples."""

import io
import os

import pytest
from rich.console import Console

from orchestrator.display.progress import ProgressDisplay, generate_progress, prepare_progress

STEP = {
    "train/loss": 2.5,
    "train/loss_clm": 2.5,
    "optimizer/lr": 1e-3,
    "optimizer/grad_norm": 0.5,
    "throughput/tokens_per_second": 12345.0,
    "throughput/step_seconds": 2.0,
}
EVENTS = (
    {"kind": "start", "run": "tiny", "num_steps": 100},
    {"kind": "step", "step": 10, "metrics": STEP},
    {"kind": "validation", "step": 10, "metrics": {"val/bits_per_byte": 1.5, "val/loss_clm": 2.25}},
    {"kind": "skip", "step": 10, "reason": "the loss is not finite", "samples": [80, 87]},
    {"kind": "checkpoint", "step": 10, "seconds": 0.25},
    {"kind": "rollback", "step": 5, "from_step": 12, "text": "two bad steps: back to the checkpoint after step 5"},
    {"kind": "begin", "step": 5},
    {"kind": "note", "text": "something to know"},
    {"kind": "a later version's own"},
    {"kind": "end", "seconds": 61.0},
)


def shown(terminal: bool) -> str:
    file = io.StringIO()
    with ProgressDisplay(Console(file=file, force_terminal=terminal, width=80, highlight=False)) as display:
        for event in EVENTS:
            display(event)
    return file.getvalue()


def test_in_a_file_every_event_is_a_plain_line() -> None:
    assert shown(terminal=False).splitlines() == [
        "training tiny: 100 steps",
        "step  10/100  clm 2.500  lr 1.0e-03  grad 0.50  12.3k tok/s  3 min 00 s left",
        "step  10/100  validation: bits per byte 1.500, clm 2.250",
        "step  11/100  skipped: the loss is not finite (samples 80 to 87)",
        "step  10/100  checkpoint saved in 0.2 s",
        "step  12/100  two bad steps: back to the checkpoint after step 5",
        "something to know",
        "training done in 1 min 01 s",
    ]


def test_on_a_terminal_a_bar_stays_below_the_lines() -> None:
    text = shown(terminal=True)
    assert "10/100" in text
    assert "━" in text
    assert "\x1b[" in text


def test_nothing_is_shown_before_the_first_event(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay():
        pass
    with prepare_progress():
        pass
    assert capsys.readouterr().out == ""


def test_preparation_ends_with_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    with prepare_progress() as begin:
        begin(2_000_000)(2_000_000, 500_000)
    assert capsys.readouterr().out.startswith("prepared 2.00 MB as 500k tokens in ")


def test_texts_and_their_progress_go_to_different_streams(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = iter([0.0, 0.0, 1.0, 7.0, 7.0, 7.0, 8.0, 8.0])
    monkeypatch.setattr("orchestrator.display.progress.time.monotonic", lambda: next(seconds))
    with generate_progress(3000) as progress:
        for done in (1000, 2000, 3000):
            progress(done, 70)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "generate  2,000/3,000 prompts  20 tok/s",
        "generate  3,000/3,000 prompts  26.2 tok/s",
    ]


def test_skipped_step_is_told_with_the_command_that_shows_it_and_a_root_of_ones_own() -> None:
    command = "orchestrator batch run.name=tiny sample=80-87"
    skip = {"kind": "skip", "step": 10, "reason": "spike", "samples": [80, 87], "command": command}
    for root, field in (
        ("s3://bucket/my runs", " 'storage.root=s3://bucket/my runs'"),
        (os.path.abspath("outputs"), ""),
    ):
        console = Console(file=io.StringIO(), width=200)
        with ProgressDisplay(console) as display:
            display({"kind": "start", "run": "tiny", "num_steps": 100, "root": root})
            display(skip)
        assert console.file.getvalue().endswith(f"skipped: spike (samples 80 to 87; {command}{field})\n")  # type: ignore[attr-defined]
