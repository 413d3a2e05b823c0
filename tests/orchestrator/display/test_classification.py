"""The confusion matrix as a table and as a picture."""

import numpy as np
import pytest
from png_pixels import pixels_of

from orchestrator.display.classification import show_classification
from orchestrator.display.confusion_picture import confusion_picture
from orchestrator.display.pictures import BLUE, WHITE, lettering

TEN = [
    "Business & economy",
    "Sports",
    "Science",
    "World politics",
    "[bold]Entertainment",
    "Gesundheit",
    "天气",
    "Technology",
    "Travel and a very long name that goes on and on",
    "Küche",
]


def ten() -> np.ndarray:
    confusion = np.arange(100.0).reshape(10, 10) * 40
    confusion[2, 0] = 0
    return confusion


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_table_of_two_labels_names_rows_and_columns(capsys: pytest.CaptureFixture[str]) -> None:
    show_classification(["negative", "positive"], np.array([[380.0, 20], [0, 454]]))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["label", "negative", "positive"] in rows
    assert ["1", "negative", "380", "20"] in rows
    assert ["2", "positive", "·", "454"] in rows
    assert "│ 1 │ negative │ 100.0 % │ 95.0 % │ 97.4 % │ 400 │" in [" ".join(row) for row in rows]


def test_a_table_of_ten_labels_fits_into_80_columns_with_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    show_classification(TEN, ten())
    lines = capsys.readouterr().out.partition("Scores")[0].splitlines()
    assert max(map(len, lines)) <= 80
    heads = next(line.split() for line in lines if "label " in line)
    assert heads == ["label", *map(str, range(1, 11))]
    found = [line.split()[-10:] for line in lines if line.strip()[:1].isdigit()]
    assert found == [[f"{value:.0f}" if value else "·" for value in row] for row in ten()]
    assert "[bold]Ent" in "\n".join(lines)


def test_a_matrix_that_is_too_wide_is_told_by_its_most_frequent_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    confusion = np.eye(40) * 12_000
    confusion[3, 5], confusion[5, 3] = 70, 80
    show_classification([f"intent {number}" for number in range(40)], confusion)
    said = capsys.readouterr().out
    assert "The confusion matrix of 40 labels is too wide" in said
    mistakes = said.partition("Most frequent")[2].partition("Scores")[0].splitlines()
    assert [line.split("│")[1:-1] for line in mistakes if "intent" in line] == [
        [" intent 5 ", " intent 3  ", "       80 "],
        [" intent 3 ", " intent 5  ", "       70 "],
    ]


def places(pixels: np.ndarray, ink: np.ndarray, colour: np.ndarray) -> list[tuple[int, int]]:
    """Return where exactly this ink is in a picture, and no other of its colour among it."""
    drawn = (pixels == colour).all(-1)
    height, width = ink.shape
    windows = np.lib.stride_tricks.sliding_window_view(drawn, (height, width))
    return [(int(top), int(left)) for top, left in np.argwhere((windows == ink).all((2, 3)))]


def test_a_picture_names_every_row_and_column_and_writes_the_numbers() -> None:
    pixels = pixels_of(confusion_picture(["cats", "dogs"], np.array([[30.0, 10], [0, 7]])))
    ((top, _),) = places(pixels, lettering("1 cats", 2), BLUE)
    ((below, _),) = places(pixels, lettering("2 dogs", 2), BLUE)
    ((_, left),) = places(pixels, np.rot90(lettering("1 cats", 2)), BLUE)
    ((_, right),) = places(pixels, np.rot90(lettering("2 dogs", 2)), BLUE)
    assert (below - top, right - left) == (72, 72)
    assert places(pixels, lettering("predicted", 2), BLUE)
    assert places(pixels, np.rot90(lettering("label", 2)), BLUE)
    ((number_top, number_left),) = places(pixels, lettering("30", 2), WHITE)
    assert number_top == top
    assert left < number_left + 12 < left + 16
    ((other_top, other_left),) = places(pixels, lettering("10", 2), BLUE)
    assert (other_top, other_left) == (number_top, number_left + 72)


def test_a_picture_is_dark_where_a_label_has_most_of_its_examples_however_rare_the_label_is() -> None:
    pixels = pixels_of(confusion_picture(["cats", "dogs"], np.array([[3000.0, 1000], [0, 7]])))
    middle = len(pixels) - 10 - 72 - 72  # the corner of the matrix
    corners = [
        [pixels[middle + row * 72 + 2, middle + column * 72 + 2].tolist() for column in (0, 1)] for row in (0, 1)
    ]
    assert corners == [[[70, 100, 144], [193, 203, 218]], [[255, 255, 255], [8, 48, 107]]]


def test_letters_of_latin_scripts_lose_their_accents_and_others_are_marked() -> None:
    assert (lettering("Küche à", 1) == lettering("Kuche a", 1)).all()
    assert (lettering("天气", 1) == lettering("??", 1)).all()
    letters = [lettering(chr(number), 1).tobytes() for number in range(32, 127)]
    assert len(set(letters)) == 95


def test_a_picture_of_very_many_labels_stays_small() -> None:
    confusion = np.zeros((300, 300))
    confusion[0, 1] = 5
    pixels = pixels_of(confusion_picture([""] * 300, confusion))
    assert pixels.shape == (1800, 1800, 3)
    assert (pixels < 255).any(-1).sum() == 36
    assert pixels[0, 6].tolist() == [8, 48, 107]
