"""Records what the samples of a validation cost: generated with room for a copy of all weights, and without."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from seen_collectives import recording


class Generated(NamedTuple):
    """Samples, and what it took to generate them."""

    rows: list[list[int]]
    note: str | None
    num_gathered: int
    """Elements that were gathered."""
    num_held: int
    """Elements of whole weights that this rank holds afterwards."""


@dataclass(frozen=True)
class GeneratedAgain:
    """Generates the samples of each validation again, for each of `limits`, and records those of the last validation.

    Args:
        limits: Forward passes that generation may take; None leaves it to the room that there is.
    """

    folder: Path
    num_sequences: int
    num_tokens: int
    limits: tuple[int | None, ...]

    @contextmanager
    def __call__(self, rank: int) -> Iterator[None]:
        from modules.generation.sampling import Sampling
        from orchestrator.training import fit, samples
        from orchestrator.training.callbacks import validation

        sampling = Sampling(self.num_sequences, self.num_tokens, top_k=50)

        def generate(trainer: Any, module: Any, sampling: Any, most_passes: int) -> Any:
            found = [self._generated(trainer, module, sampling, limit) for limit in self.limits]
            (self.folder / f"samples-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
            return samples.Samples(found[-1].rows, found[-1].note)

        with patch.object(fit, "_sampling", lambda parts: sampling), patch.object(validation, "generate", generate):
            yield

    def _generated(self, trainer: Any, module: Any, sampling: Any, limit: int | None) -> Generated:
        from orchestrator.training import samples

        room = nullcontext() if limit is None else patch.object(samples, "free_bytes", lambda device: 0.0)
        with room, recording() as seen:
            found = samples.generate(trainer, module, sampling, limit or 0)
        num_gathered = sum(each.num_elements for each in seen if each.name == "allgather_base")
        num_held = sum(parameter.data.numel() for parameter in module.model.parameters())
        return Generated(found.rows, found.note, num_gathered, num_held)

    def read(self, rank: int = 0) -> list[Generated]:
        """Return a rank's samples for each of `limits`."""
        found = json.loads((self.folder / f"samples-{rank}.json").read_text(encoding="utf-8"))
        return [Generated(*each) for each in found]
