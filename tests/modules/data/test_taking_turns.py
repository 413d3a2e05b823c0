from collections.abc import Iterator

from modules.data.taking_turns import taking_turns


def pieces(text: str, size: int) -> Iterator[str]:
    return (text[i : i + size] for i in range(0, len(text), size))


def test_any_beginning_holds_as_many_bytes_of_each_text_to_a_piece_until_one_ends() -> None:
    texts = {"a": 1000, "é": 300, "c": 90}
    counts = dict.fromkeys(texts, 0)
    for piece in taking_turns(pieces(letter * number, 7 + number % 5) for letter, number in texts.items()):
        counts[piece[0]] += len(piece.encode())
        going_on = [
            counts[letter] for letter, number in texts.items() if counts[letter] < len((letter * number).encode())
        ]
        assert max(going_on, default=0) - min(going_on, default=0) <= 24
    assert counts == {"a": 1000, "é": 600, "c": 90}
