"""One driver's attempt at a run, known to all its workers and writers: what an older attempt writes is not committed.

runs/NAME/lease/0000000007.json    the lease of attempt 7; the one with the highest number is valid

A stage of a pipeline has attempts, too, below stages/ instead of runs/, and a sweep below sweeps/.
"""

import json
import re
from dataclasses import dataclass

from orchestrator.errors import LeaseLostError
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

RUNS, STAGES, SWEEPS = "runs", "stages", "sweeps"
"""Folders below the storage root whose children have leases."""


@dataclass(frozen=True)
class Attempt:
    """One driver's attempt at a run; plain data, so that it can be sent to any process."""

    run_name: str
    number: int
    """Counted from 1; 0 where no driver holds a lease, as in tests of a single part."""
    token: str
    """Distinguishes it from an attempt of the same number, which there is if the folder of leases was removed."""
    above: str = RUNS
    """The folder that holds the one with that name."""

    @property
    def lease_name(self) -> str:
        """The file of its lease, relative to the storage root."""
        return lease_name(self.run_name, self.number, self.above)

    def check(self, storage: Storage) -> None:
        """Raise LeaseLostError if another driver has taken the run over since."""
        newest = newest_number(storage, self.run_name, self.above)
        if newest > self.number or not self._is_token_of_lease(storage):
            name, what = ("run.name=", "run") if self.above == RUNS else (f"{self.above}/", self.above.rstrip("s"))
            raise LeaseLostError(f"{name}{self.run_name}: another driver has taken over this {what}; this one ends")

    def _is_token_of_lease(self, storage: Storage) -> bool:
        if not self.number:
            return True
        try:
            return json.loads(storage.read_bytes(self.lease_name))["token"] == self.token
        except (NotFoundError, ValueError, TypeError, KeyError):
            return True  # removed or damaged by no driver: ours writes it anew


def lease_folder(run_name: str, above: str = RUNS) -> str:
    """Return the folder of a run's leases."""
    return f"{above}/{run_name}/lease"


def lease_name(run_name: str, number: int, above: str = RUNS) -> str:
    """Return the file of the lease of attempt `number`."""
    return f"{lease_folder(run_name, above)}/{number:010d}.json"


def newest_number(storage: Storage, run_name: str, above: str = RUNS) -> int:
    """Return the number of a run's newest attempt; 0 if there is none."""
    found = (re.fullmatch(r"(\d{10})\.json", name) for name in storage.list(lease_folder(run_name, above)))
    return max((int(name[1]) for name in found if name), default=0)
