"""What a user sees: plain lines in a file, a live bar on a terminal, tables and samples."""

import io

import pytest
from rich.console import Console

from orchestrator.console import show_evaluation, show_results, show_samples, stream_text
from orchestrator.goodput import Goodput
from orchestrator.progress_display import ProgressDisplay, prepare_progress
from orchestrator.units import age, count, duration, percent, size

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


def test_results_show_figures_in_order_and_where_things_are(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"train/loss": 2.5, "val/bits_per_byte": 1.5, "own/figure": 7.0}
    show_results("tiny", metrics, Goodput(100, 93, 0.4, ()), ["model: /a/model"])
    said = capsys.readouterr().out
    assert said.index("validation bits per byte") < said.index("training loss") < said.index("own/figure")
    assert said.splitlines()[-2:] == ["goodput 93.0 % of 1 min 40 s; 0.4 s waiting for saves", "model: /a/model"]


@pytest.mark.parametrize(
    ("recovery", "told"), [((2.25,), "1 restart took 2.2 s"), ((2.0, 3.5), "2 restarts took 5.5 s")]
)
def test_results_tell_what_restarts_cost(
    recovery: tuple[float, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_results("tiny", {}, Goodput(100, 50, 0.0, recovery), [])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"goodput 50.0 % of 1 min 40 s; {told}; 0.0 s waiting for saves"
    assert len(line) <= 80


def test_evaluation_ranks_the_model_among_compressors(capsys: pytest.CaptureFixture[str]) -> None:
    show_evaluation("model", {"val/bits_per_byte": 2.0}, {"gzip -9": 3.0, "xz -9": 1.5})
    said = capsys.readouterr().out.partition("Bits per byte")[2]
    assert said.index("xz -9") < said.index("this model") < said.index("gzip -9")


def test_samples_are_numbered_and_keep_their_letters(capsys: pytest.CaptureFixture[str]) -> None:
    show_samples("import [bold]", [" os", " sys"])
    said = capsys.readouterr().out
    assert "sample 1 of 2" in said
    assert "import [bold] sys" in said


def test_streamed_text_is_the_text_and_a_line_end(capsys: pytest.CaptureFixture[str]) -> None:
    stream_text("a", iter(["b", "", "\n c"]))
    assert capsys.readouterr().out == "ab\n c\n"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (count(999), "999"),
        (count(999.6), "1.00k"),
        (count(12345), "12.3k"),
        (count(1.5e9), "1.50G"),
        (size(1234567), "1.23 MB"),
        (size(12), "12 B"),
        (duration(0.0042), "4.2 ms"),
        (duration(4.2), "4.2 s"),
        (duration(59.96), "1 min 00 s"),
        (duration(7500), "2 h 05 min"),
        (percent(0.1234), "12.3 %"),
        (age(59.9), "59 s"),
        (age(60), "1 min"),
        (age(7199), "1 h"),
        (age(400 * 86400), "400 d"),
    ],
)
def test_figures_are_as_people_read_them(found: str, expected: str) -> None:
    assert found == expected
