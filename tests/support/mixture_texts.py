"""Three small texts of letters of their own: `web.jsonl`, `law.jsonl` with the field `body`, and `code.txt`."""

import json
import random
from pathlib import Path


def write_texts(folder: Path) -> None:
    """Write the texts into a folder."""
    rng = random.Random(0)
    for name, field, letters in (("web", "text", "abcde"), ("law", "body", "fghij")):
        rows = [{field: "".join(rng.choices(letters + " ", k=50))} for _ in range(50)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "code.txt").write_text("".join(rng.choices("klmno\n", k=2500)))
