"""Where a text ends, whatever pieces it comes in."""

import itertools
import random

import pytest

from modules.generation.stop import StoppedText


class Pieces:
    """A stream of text of which token i is piece i."""

    def __init__(self, pieces: list[str], rest: str = ""):
        self.pieces, self.rest = pieces, rest

    def add(self, number: int) -> str:
        return self.pieces[number]

    def finish(self) -> str:
        return self.rest


def shown(pieces: list[str], stop: list[str], rest: str = "") -> tuple[str, bool]:
    text = StoppedText(Pieces(pieces, rest), stop)
    found = "".join(text.add(number) for number in range(len(pieces)))
    found += text.finish()
    assert text.text == found
    return found, text.is_stopped


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\n\ntwo", ["\n\n"], "one"),
        ("one\ntwo\n", ["\n\n"], "one\ntwo\n"),
        ("STOP", ["STOP"], ""),
        ("a STO STOP b", ["STOP"], "a STO "),
        ("abababc", ["ababc"], "ab"),
        ("xabcdx", ["bcd", "c"], "xab"),
        ("xabcdx", ["c", "abcd"], "xab"),
        ("xabcdx", ["bc", "abc"], "x"),
        ("über·größe", ["größe"], "über·"),
        ("no stop", [], "no stop"),
        ("end STO", ["STOP"], "end STO"),
    ],
)
def test_the_text_ends_before_the_stop_string_however_it_is_cut(text: str, stop: list[str], expected: str) -> None:
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        pieces, start = [], 0
        for place, cut in enumerate(cuts, start=1):
            if cut:
                pieces.append(text[start:place])
                start = place
        found = shown([*pieces, text[start:]], stop)
        assert found == (expected, expected != text)


def test_nothing_is_shown_that_a_stop_string_may_take_back() -> None:
    generator = random.Random(3)
    for _ in range(300):
        stop = ["".join(generator.choices("ab", k=generator.randint(1, 4))) for _ in range(2)]
        pieces = ["".join(generator.choices("abc", k=generator.randint(0, 3))) for _ in range(12)]
        text, so_far = StoppedText(Pieces(pieces), stop), ""
        for number in range(len(pieces)):
            so_far += text.add(number)
            assert not any(string in so_far for string in stop)
        whole = "".join(pieces)
        assert whole.startswith(so_far + text.finish())
        assert text.is_stopped == any(string in whole for string in stop)


def test_a_text_without_stop_strings_is_never_held_back() -> None:
    text = StoppedText(Pieces(["a", "b"]), [])
    assert (text.add(0), text.add(1)) == ("a", "b")


def test_text_that_comes_at_the_end_can_hold_the_stop_string() -> None:
    assert shown(["a", "b"], ["bcd"], rest="cde") == ("a", True)
    assert shown(["a", "b"], ["bcd"], rest="c") == ("abc", False)


def test_nothing_follows_a_stop_string() -> None:
    assert shown(["a.", "b", "c"], ["."], rest="d") == ("a", True)
