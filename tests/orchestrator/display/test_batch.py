"""What `batch` shows fits into the terminal, and of it the text alone is cut."""

import pytest

from orchestrator.display.batch import show_step
from orchestrator.runs.step_rows import PartRow, SampleRow, StepRow

STEP = StepRow(20, 19, 76, 79, {"clm": 1.0, "mlm": 1.0}, (1, 1), 1, ())


def part(file: str, losses: dict[str, float]) -> PartRow:
    return PartRow(file=file, row=123456, is_begun=True, text="word " * 60, num_tokens=1024, target=None, losses=losses)


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("losses", [{}, {"clm": 4.0583, "mlm": 11.2041}])
@pytest.mark.parametrize("file", ["web.jsonl", "folder/" * 8 + "part-00017.jsonl.gz"])
def test_file_row_tokens_and_losses_are_shown_whole_and_the_text_is_cut(
    file: str,
    losses: dict[str, float],
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    parts = [part(file, losses)]
    show_step(STEP, [SampleRow(76, 0, "web", 130654, 1024, parts, losses, {}, 7.5 if losses else None)])
    said = capsys.readouterr().out
    table = said[said.index("file ") :].splitlines()
    assert max(map(len, table)) <= columns
    assert "".join(line[:28].strip() for line in table[1:]).startswith(file[:28])
    for cell in ("123456", "1024", *(f"{value:.4f}" for value in losses.values())):
        assert cell in table[1].split()
    assert "… word word" in table[1]
    assert table[1].endswith("…")
