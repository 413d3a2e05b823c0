"""Files on this machine by path, folder or glob: links are followed, and what cannot be read is named."""

import os
import stat
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import has_magic

_ANY_DEPTH = "**"
_NO_FILES = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}


@dataclass(frozen=True)
class LocalFiles:
    """What a path, a folder or a glob leads to."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Size of each file in bytes, by its absolute path."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Why something there cannot be read, by its absolute path."""

    def add(self, path: str) -> None:
        """Add a path that is no folder, as a file if it is one that can be read."""
        status = _status(path)
        if status is None:
            target = f" to {os.readlink(path)}, where nothing is" if os.path.islink(path) else ", but it is gone"
            self.unreadable[path] = f"is a link{target}; correct or remove it"
        elif not stat.S_ISREG(status.st_mode):
            kind = _NO_FILES.get(stat.S_IFMT(status.st_mode), "a device")
            self.unreadable[path] = f"is {kind}; text is read several times, so save it to a file"
        elif not os.access(path, os.R_OK):
            self.unreadable[path] = "permission denied"
        else:
            self.sizes[path] = status.st_size


def find_local_files(path: str) -> LocalFiles:
    """Return the files that `path` leads to; a folder is searched to the bottom, also one that a glob matches.

    Names that begin with a dot are passed over. A folder that several links lead to is searched once, and so is one
    that a link leads back to.
    """
    found = LocalFiles()
    base, pattern = _split(os.path.abspath(os.path.expanduser(path)))
    if not pattern and os.path.isdir(base):
        _search(base, [_ANY_DEPTH], found)
    elif not pattern:
        found.add(base)
    elif has_magic("/".join(pattern)) and os.path.isdir(base):
        _search(base, pattern, found)
    return found


def _split(path: str) -> tuple[str, list[str]]:
    """Return the longest beginning of `path` that exists, whatever characters it has, and the parts after it."""
    parts, after = path.split("/"), []
    while len(parts) > 1 and not os.path.lexists("/".join(parts)):
        after.insert(0, parts.pop())
    return "/".join(parts) or "/", after


def _search(base: str, pattern: list[str], found: LocalFiles) -> None:
    # links are followed last, so that a file which is found without them, too, goes by its own name
    folders, links = [(base, pattern)], []
    searched = set()
    while folders or links:
        folder, parts = folders.pop() if folders else links.pop(0)
        status = os.stat(folder)
        if (key := (status.st_dev, status.st_ino, *parts)) in searched:
            continue
        searched.add(key)
        for name in _names(folder, found):
            path, ways = os.path.join(folder, name), _inside(name, parts)
            if not ways:
                continue
            if os.path.isdir(path):
                queue = links if os.path.islink(path) else folders
                queue += [(path, way or [_ANY_DEPTH]) for way in ways]
            elif [] in ways or [_ANY_DEPTH] in ways:
                found.add(path)


def _names(folder: str, found: LocalFiles) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except PermissionError:
        found.unreadable[folder] = "permission denied"
        return []


def _inside(name: str, parts: list[str]) -> list[list[str]]:
    """Return what is left to be matched inside `name`, for each way in which `parts` match it; [] if nothing is."""
    first, *rest = parts
    is_hidden = name.startswith(".")
    if first == _ANY_DEPTH:
        return ([] if is_hidden else [parts]) + (_inside(name, rest) if rest else [])
    return [rest] if fnmatchcase(name, first) and (first.startswith(".") or not is_hidden) else []


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        if not os.path.lexists(path) or os.path.islink(path):
            return None
        raise
