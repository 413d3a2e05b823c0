"""What a model looks at, for people: a table, a page that needs no network, and pictures.

Shapes: T positions, H heads, L layers.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from orchestrator.display.pictures import BLUE, WHITE, png
from orchestrator.display.terminal import new_console, new_table, printable

_PAGE = Path(__file__).with_name("explanation.html")
_NUM_SHOWN = 3
_HEAD_PIXELS = 160
_GAP_PIXELS = 4


@dataclass(frozen=True)
class ShownExplanation:
    """An explanation in words and numbers."""

    about: str
    """The model, in one line."""
    tokens: Sequence[str]
    """The prompt's tokens as text."""
    attention: NDArray[np.float32]
    """[L, H, T, T]: how much a position (last but one) looks at another (last)."""
    likeliest: Sequence[Sequence[tuple[str, float]]]
    """For each position the likeliest next tokens with their probabilities."""


def show_explanation(explanation: ShownExplanation) -> None:
    """Show a line for each token: what probably follows, and what it looks at, as a mean of all layers and heads."""
    console = new_console()
    table: Table = new_table("Likeliest next tokens, and what each token looks at (mean of all layers and heads)")
    for column in ("", "token", "likeliest next", "looks at"):
        table.add_column(column, overflow="fold", justify="left" if column else "right")
    means = explanation.attention.mean((0, 1))
    for position, token in enumerate(explanation.tokens):
        order = np.argsort(-means[position], kind="stable")[: min(_NUM_SHOWN, position + 1)]
        looks = [(explanation.tokens[int(to)], float(means[position, to])) for to in order]
        cells = (_visible(token), _listed(explanation.likeliest[position][:_NUM_SHOWN]), _listed(looks))
        table.add_row(str(position + 1), *(Text(printable(console, cell)) for cell in cells))
    console.print(table)


def explanation_page(explanation: ShownExplanation) -> str:
    """Return one HTML page with everything in it; attention is rounded to 1/255."""
    num_layers, num_heads = explanation.attention.shape[:2]
    rounded = np.rint(255 * explanation.attention).astype(np.uint8)
    data = {
        "about": explanation.about,
        "layers": num_layers,
        "heads": num_heads,
        "tokens": list(explanation.tokens),
        "likeliest": explanation.likeliest,
        "attention": base64.b64encode(rounded.tobytes()).decode(),
    }
    # a token such as </script> would end the data
    content = json.dumps(data).replace("<", "\\u003c")
    return _PAGE.read_text(encoding="utf-8").replace(">DATA<", f">{content}<")


def layer_picture(attention: NDArray[np.float32]) -> bytes:
    """Return a PNG of a layer's heads [H, T, T], in rows from left to right; dark is much attention."""
    num_heads, length, _ = attention.shape
    scale = max(1, _HEAD_PIXELS // length)
    side = scale * length + _GAP_PIXELS
    num_columns = int(np.ceil(np.sqrt(num_heads)))
    num_rows = -(-num_heads // num_columns)
    pixels = np.full((num_rows * side + _GAP_PIXELS, num_columns * side + _GAP_PIXELS, 3), 200.0)
    for head, weights in enumerate(attention):
        row, column = divmod(head, num_columns)
        top, left = row * side + _GAP_PIXELS, column * side + _GAP_PIXELS
        shade = np.kron(weights, np.ones((scale, scale)))[..., None]
        pixels[top : top + scale * length, left : left + scale * length] = (1 - shade) * WHITE + shade * BLUE
    return png(np.rint(pixels).astype(np.uint8))


def _listed(tokens: Sequence[tuple[str, float]]) -> str:
    return "  ".join(f"{_visible(token)} {100 * share:.0f}%" for token, share in tokens)


def _visible(token: str) -> str:
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
