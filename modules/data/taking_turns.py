"""Several texts as one, in equal parts."""

import heapq
from collections.abc import Iterable, Iterator


def taking_turns(texts: Iterable[Iterator[str]]) -> Iterator[str]:
    """Yield the next piece of the text of which the fewest bytes were yielded so far; a text that ends drops out.

    So the beginning, however long, holds as many bytes of each text as there are, to a piece.
    """
    queue = [(0, number, text) for number, text in enumerate(texts)]
    while queue:
        num_bytes, number, text = queue[0]
        piece = next(text, None)
        if piece is None:
            heapq.heappop(queue)
            continue
        heapq.heapreplace(queue, (num_bytes + len(piece.encode()), number, text))
        yield piece
