"""What commands show of their results."""

from typing import Any

import pytest

from orchestrator.display.results import show_evaluation, show_results, show_samples, stream_text
from orchestrator.runs.goodput import Goodput


def test_results_show_figures_in_order_and_where_things_are(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"train/loss": 2.5, "val/bits_per_byte": 1.5, "own/figure": 7.0}
    show_results("tiny", metrics, Goodput(100, 93, 0.4, ()), ["model: /a/model"])
    said = capsys.readouterr().out
    assert said.index("validation bits per byte") < said.index("training loss") < said.index("own/figure")
    assert said.splitlines()[-2:] == ["goodput 93.0 % of 1 min 40 s; 0.4 s waiting for saves", "model: /a/model"]


@pytest.mark.parametrize(
    ("recovery", "expected"), [((2.25,), "1 restart took 2.2 s"), ((2.0, 3.5), "2 restarts took 5.5 s")]
)
def test_results_show_what_restarts_cost(
    recovery: tuple[float, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_results("tiny", {}, Goodput(100, 50, 0.0, recovery), [])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"goodput 50.0 % of 1 min 40 s; {expected}; 0.0 s waiting for saves"
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


@pytest.mark.parametrize("show", [lambda prompt, text: show_samples(prompt, [text, ""]), stream_text])
def test_text_in_a_file_is_what_the_model_wrote(show: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\t" + "word " * 40 + "\r\n\x07 :smile: 你好" * 30
    show("\tprompt " * 20, text)
    assert "\tprompt " * 20 + text + "\n" in capsys.readouterr().out
