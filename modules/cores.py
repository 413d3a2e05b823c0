"""How many processor cores this process may use."""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def num_cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    A container or a batch job may have fewer than the machine: by its set of cores, or by the processor time that its
    control group (version 1 or 2) grants, rounded up.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, math.ceil(min(usable, _granted_cores(_OWN_CGROUPS, _CGROUPS))))


def _granted_cores(own: Path, root: Path) -> float:
    """Return the smallest quota among the control groups that hold this process, in cores; infinity without one."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux, or /proc is hidden
        return math.inf
    granted = math.inf
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        # in a container the path may be the host's, of which only the root is mounted
        for folder in (base, *(base / part for part in _ancestors(path))):
            granted = min(granted, _quota(folder))
    return granted


def _ancestors(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def _quota(folder: Path) -> float:
    """Return the processor time that one control group grants, in cores."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):  # no such group, or one without limits
        return math.inf
