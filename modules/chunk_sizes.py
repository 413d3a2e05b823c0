"""How much is computed at a time where not all is; without torch, so that `plan` can reckon with it."""

_MOST_LOGITS_ON_CPU = 2**22
_MOST_LOGITS_ELSEWHERE = {"eager": 2**27, "compiled": 2**28}
"""Logits in a chunk: on CPU few enough to stay in the cache; a GPU needs large products, and what is compiled has no
probabilities beside the logits. For 12,288 tokens of 50,257 in bfloat16 an H200 took in chunks of 2^26, 2^27 and 2^28
12.8, 11.6 and 11.0 ms, compiled 8.7, 7.4 and 7.1 (torch 2.11.0)."""
_FEWEST_ROWS = 512
"""Fewer make the products slow: of 50,304 tokens, 256 and 512 rows took 0.93 and 0.82 of plain torch's time on CPU."""
FEW_LOGITS = 2**20
"""Logits up to which torch's own operations compute all of them at once, and faster (torch 2.13.0)."""
GELU_NUMBERS = 2**17
"""Most numbers that a pass of GELU takes on CPU for each thread, so that the next pass finds them in the cache."""


def chunk_rows(num_columns: int, device_type: str, is_compiled: bool = False) -> int:
    """Return the tokens in a chunk for `num_columns` of vocabulary: bounded logits, but enough rows to be fast."""
    elsewhere = _MOST_LOGITS_ELSEWHERE["compiled" if is_compiled else "eager"]
    most = _MOST_LOGITS_ON_CPU if device_type == "cpu" else elsewhere
    return max(_FEWEST_ROWS, most // num_columns)
