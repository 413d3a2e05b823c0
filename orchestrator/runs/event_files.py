"""The files in which a run's events lie: few of them however old the run is, each written once and read once.

    runs/NAME/events/00001795651911471096-launch-fd0a.json    one event; its time in microseconds, its kind
    runs/NAME/events/00001795651913484235-1-c82e.jsonl        several, merged once; the time of the newest of them

Sixteen files of the same level are merged into one of the next, so that a file is added for sixteen times as many
events at each level. A merged file is complete before those that it replaces are removed: whoever reads meanwhile finds
an event once or twice, and takes it once.
"""

import json
import logging
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from orchestrator.distributed.runtime import Event
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

log = logging.getLogger(__name__)
MERGED_FILES = 16
"""So many files of one level become one of the next."""
_SINGLE = re.compile(r"(\d{17})-([a-z_]+)-\w+\.json")
_SEVERAL = re.compile(r"(\d{17})-(\d+)-\w+\.jsonl")
_NUM_READERS = 8
_NUM_LISTINGS = 5


def event_id(event: Event) -> str:
    """Return a new name for an event; names are in order of time."""
    return f"{int(event['time'] * 1e6):017d}-{event['kind']}-{secrets.token_hex(2)}"


def newest_seconds(storage: Storage, folder: str) -> float:
    """Return the time of the newest event in a folder; 0 without any."""
    return max((_newest_of([name]) for name in storage.list(folder)), default=0.0)


class EventFiles:
    """The events in a folder, by their names; a file that was read once is not read again."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder
        self._files: dict[str, dict[str, Event]] = {}

    @property
    def events(self) -> list[Event]:
        """All events that are known, in order of time."""
        found = {name: event for file in self._files.values() for name, event in file.items()}
        return [found[name] for name in sorted(found)]

    @property
    def newest_seconds(self) -> float:
        """The time of the newest event that is known; 0 without any."""
        return _newest_of(self._files)

    def refresh(self, kinds: Iterable[str] = ()) -> None:
        """Read what other processes have written; files that were merged meanwhile are listed again.

        Args:
            kinds: Single events of other kinds are not read; empty for all.
        """
        wanted = set(kinds)
        for _ in range(_NUM_LISTINGS):
            names = [name for name in self._storage.list(self._folder) if _is_wanted(name, wanted)]
            new = [name for name in names if name not in self._files]
            # each read costs a round trip to a remote store
            with ThreadPoolExecutor(_NUM_READERS) as pool:
                contents = dict(zip(new, pool.map(self._read, new), strict=True))
            known = {**self._files, **{name: content for name, content in contents.items() if content is not None}}
            self._files = {name: known[name] for name in names if name in known}
            if None not in contents.values():
                return

    def add(self, events: Mapping[str, Event]) -> None:
        """Write events, by their names, as one file."""
        if len(events) == 1:
            ((name, event),) = events.items()
            self._storage.write_bytes(f"{self._folder}/{name}.json", json.dumps(event).encode())
            self._files[f"{name}.json"] = dict(events)
        else:
            self._write(0, events)

    def merge(self, into_one: bool = False) -> None:
        """Merge files of the same level where there are many of them, or all files."""
        levels: dict[int, list[str]] = defaultdict(list)
        for name, content in self._files.items():
            if content:  # a damaged one stays as it is
                levels[_level(name)].append(name)
        if into_one:
            everything = [name for names in levels.values() for name in names]
            if len(everything) > 1:
                self._replace(everything, max(levels) + 1)
            return
        for level in sorted(levels):
            if len(levels[level]) >= MERGED_FILES:
                self._replace(levels[level], level + 1)
                self.merge()
                return

    def _replace(self, names: list[str], level: int) -> None:
        self._write(level, {name: event for file in names for name, event in self._files[file].items()})
        for name in names:
            self._storage.remove(f"{self._folder}/{name}")
            del self._files[name]

    def _write(self, level: int, events: Mapping[str, Event]) -> None:
        newest = max(events).partition("-")[0]
        file = f"{newest}-{level}-{secrets.token_hex(2)}.jsonl"
        lines = (json.dumps({"id": name, **events[name]}) for name in sorted(events))
        self._storage.write_bytes(f"{self._folder}/{file}", "".join(f"{line}\n" for line in lines).encode())
        self._files[file] = dict(events)

    def _read(self, file: str) -> dict[str, Event] | None:
        """Return the events of a file, by name; None if it is gone, and none if it is damaged, which is logged."""
        path = f"{self._folder}/{file}"
        try:
            text = self._storage.read_bytes(path).decode()
            if _SINGLE.fullmatch(file):
                return {file.removesuffix(".json"): _checked(json.loads(text))}
            lines = [_checked(json.loads(line)) for line in text.splitlines()]
            return {line.pop("id"): line for line in lines}
        except NotFoundError:
            return None
        except (ValueError, KeyError) as error:
            # the others still tell the most
            log.warning("a damaged event was skipped: %s (%s)", self._storage.url(path), error)
            return {}


def _checked(event: Event) -> Event:
    if not isinstance(event, dict) or not {"kind", "time"} <= event.keys():
        raise ValueError("no event with a kind and a time")
    return event


def _is_wanted(name: str, kinds: set[str]) -> bool:
    single = _SINGLE.fullmatch(name)
    return (not kinds or single[2] in kinds) if single else bool(_SEVERAL.fullmatch(name))


def _level(name: str) -> int:
    several = _SEVERAL.fullmatch(name)
    return int(several[2]) if several else 0


def _newest_of(names: Iterable[str]) -> float:
    found = (_SINGLE.fullmatch(name) or _SEVERAL.fullmatch(name) for name in names)
    return max((int(name[1]) / 1e6 for name in found if name), default=0.0)
