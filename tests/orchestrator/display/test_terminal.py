"""What a person sees on terminals of several kinds, and what a program gets that reads the output."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from pseudo_terminal import pseudo_terminal

from orchestrator.display import streams
from orchestrator.display.progress import ProgressDisplay, evaluate_progress, prepare_progress
from orchestrator.display.results import show_evaluation, show_samples, stream_text

DUMB = ["dumb", "unknown", "", None]
STEPS = 3


def show_everything() -> None:
    """Show what commands show: bars, tables, samples and streamed text."""
    with ProgressDisplay() as display:
        display({"kind": "start", "run": "tiny", "num_steps": STEPS})
        for step in range(1, STEPS + 1):
            display({"kind": "step", "step": step, "metrics": {"train/loss": 2.5}})
        display({"kind": "end", "seconds": 1.0})
    with prepare_progress() as begin:
        begin(100)(100, 10)
    with evaluate_progress(2) as progress:
        progress(2)
    show_evaluation("model", {"val/bits_per_byte": 1.5}, {"gzip -9": 2.5})
    show_samples("To be", [" or", " not"])
    stream_text("To be", iter([" or", " not"]))


@pytest.mark.parametrize("term", DUMB)
def test_a_dumb_terminal_gets_plain_lines_as_they_come(term: str | None) -> None:
    with pseudo_terminal(term) as terminal:
        show_everything()
        text = terminal.text()
    assert "\x1b" not in text
    assert "\r" not in text
    assert "\n\n" not in text
    assert [f"step {step}/{STEPS}" in text for step in range(1, STEPS + 1)] == [True] * STEPS
    assert text.endswith("\nTo be or not\n")


def test_a_capable_terminal_gets_a_bar_and_a_bold_prompt() -> None:
    with pseudo_terminal("xterm-256color") as terminal:
        show_everything()
        text = terminal.text()
    assert "━" in text
    assert "\x1b[?25h" in text  # the cursor is back
    assert text.endswith("\x1b[1mTo be\x1b[0m or not\n")


def test_without_colours_a_terminal_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with pseudo_terminal("xterm-256color") as terminal:
        monkeypatch.setenv("NO_COLOR", "1")
        show_everything()
        text = terminal.text()
    assert not [code for code in (*range(30, 50), *range(90, 108)) if f"[{code}m" in text or f";{code}m" in text]


@pytest.mark.parametrize("colours", [{}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}])
def test_a_program_that_reads_gets_no_moves_of_the_cursor_and_the_text_as_it_is(
    colours: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in colours.items():
        monkeypatch.setenv(name, value)
    show_everything()
    stream_text("\tprompt", iter(["\x07\ttext"]))
    text = capsys.readouterr().out
    assert "\x1b[?25" not in text
    assert "\x1b[2K" not in text
    assert "\r" not in text
    assert text.endswith("To be or not\n\tprompt\x07\ttext\n")
    assert ("\x1b[" in text) == bool(colours)


def test_text_that_streams_while_the_terminal_is_resized_is_whole() -> None:
    words = [f"word{number} " for number in range(60)]

    def resized() -> Iterator[str]:
        for number, word in enumerate(words):
            terminal.resize(20 + number)
            os.kill(os.getpid(), signal.SIGWINCH)
            yield word

    with pseudo_terminal("xterm-256color", columns=200) as terminal:
        stream_text("To be ", resized())
        show_samples("To be", [" or"])
        text = terminal.text()
    streamed, _, samples = text.partition("\n")
    assert streamed == "\x1b[1mTo be \x1b[0m" + "".join(words)
    assert samples.splitlines()[-1] == "\x1b[2m" + "-" * (20 + len(words) - 1) + "\x1b[0m"


@pytest.mark.parametrize("columns", [1, 5, 0])
def test_a_terminal_of_any_width_gets_the_text(columns: int) -> None:
    with pseudo_terminal("xterm-256color", columns) as terminal:
        show_everything()
        text = terminal.text()
    assert text.endswith("\x1b[1mTo be\x1b[0m or not\n")


def test_nothing_is_generated_for_a_reader_that_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdout", streams._stream(writer, None))
    streams.end_when_unread()
    generated = []

    def pieces() -> Iterator[str]:
        for number in range(100):
            if number == 3:
                os.close(reader)
            generated.append(number)
            yield f"{number}\n"

    with pytest.raises(streams.LostOutputError):
        stream_text("To be", pieces())
    assert generated == [0, 1, 2, 3]
    assert streams.exit_code(0) == streams.UNREAD
