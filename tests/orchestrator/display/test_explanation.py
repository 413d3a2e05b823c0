"""The explanation as a table, a page and pictures."""

import base64
import json
import re

import numpy as np
import pytest
from png_pixels import pixels_of

from orchestrator.display.explanation import ShownExplanation, explanation_page, layer_picture, show_explanation

TOKENS = ["The", " end</script><b>", "\n\x1b[31m"]
LIKELIEST = [[(" end", 0.5), ("!", 0.25)], [(".", 1.0)], [("a", 0.1)]]


@pytest.fixture
def explanation() -> ShownExplanation:
    attention = np.zeros((2, 5, 3, 3), np.float32)
    attention[..., 0, 0] = attention[..., 1, 1] = attention[..., 2, 1] = 1
    attention[1, 4, 2] = [0.25, 0.25, 0.5]
    return ShownExplanation("some <model>", TOKENS, attention, LIKELIEST)


def test_the_page_holds_everything_and_no_token_ends_its_data(explanation: ShownExplanation) -> None:
    page = explanation_page(explanation)
    (content,) = re.findall(r'<script type="application/json" id="data">(.*)</script>', page)
    data = json.loads(content)
    assert (data["tokens"], data["layers"], data["heads"]) == (TOKENS, 2, 5)
    assert [[tuple(row) for row in rows] for rows in data["likeliest"]] == LIKELIEST
    bytes_of = np.frombuffer(base64.b64decode(data["attention"]), np.uint8).reshape(2, 5, 3, 3)
    assert np.abs(bytes_of / 255 - explanation.attention).max() <= 0.5 / 255 + 1e-7
    assert page.count("</script>") == 2


def test_the_page_needs_no_network(explanation: ShownExplanation) -> None:
    assert not re.findall(r"https?:|//[a-z]+\.|src=|@import|url\(|fetch\(|<link", explanation_page(explanation))


def test_the_table_says_what_follows_and_what_is_looked_at(
    explanation: ShownExplanation, capsys: pytest.CaptureFixture[str]
) -> None:
    show_explanation(explanation)
    said = capsys.readouterr().out
    assert "␣end 50%  ! 25%" in said
    assert "The 100%" in said


def test_a_picture_shows_each_head_in_its_place(explanation: ShownExplanation) -> None:
    pixels = pixels_of(layer_picture(explanation.attention[1]))
    scale, gap = 160 // 3, 4
    side = 3 * scale + gap
    assert pixels.shape == (2 * side + gap, 3 * side + gap, 3)

    def cell(head: int, position: int, to: int) -> list[int]:
        row, column = divmod(head, 3)
        middle = scale // 2
        return pixels[gap + row * side + position * scale + middle, gap + column * side + to * scale + middle].tolist()

    assert cell(0, 2, 1) == cell(3, 0, 0) == [8, 48, 107]
    assert cell(0, 2, 0) == [255, 255, 255]
    assert cell(4, 2, 2) == [132, 152, 181]


def test_a_long_text_gets_a_picture_of_one_pixel_a_token() -> None:
    assert pixels_of(layer_picture(np.ones((1, 200, 200), np.float32))).shape == (208, 208, 3)
