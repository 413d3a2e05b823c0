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

    def check(self, storage: Storage) -> bool:
        """Return whether the lease of this attempt is stored; somebody may have removed it, and no other driver begun.

        This happens every few seconds in every driver, so it is two reads, of which the second finds nothing: in an
        object store a listing costs twelve times as much. Who takes over creates the next number and removes this one.

        Raises:
            LeaseLostError: another driver has taken the run over since.
        """
        if self.number and self._token(storage) == self.token and not self._is_followed(storage):
            return True
        newest = newest_number(storage, self.run_name, self.above)
        if newest > self.number or (self.number and self._token(storage) not in (None, self.token)):
            name, what = ("run.name=", "run") if self.above == RUNS else (f"{self.above}/", self.above.rstrip("s"))
            raise LeaseLostError(f"{name}{self.run_name}: another driver has taken over this {what}; this one ends")
        return newest == self.number

    def _token(self, storage: Storage) -> str | None:
        """Return the token in the lease; None if it was removed or damaged, which no driver does."""
        try:
            return json.loads(storage.read_bytes(self.lease_name))["token"]
        except (NotFoundError, ValueError, TypeError, KeyError):
            return None

    def _is_followed(self, storage: Storage) -> bool:
        try:
            # not `exists`, which lists where it finds nothing
            storage.read_bytes(lease_name(self.run_name, self.number + 1, self.above))
        except NotFoundError:
            return False
        return True


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
