"""The packages that the cluster installs for a job, from requirements.lock."""

from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from orchestrator.errors import UserError
from orchestrator.storage.redaction import redact

LOCK = "requirements.lock"


def locked_packages(folder: Path) -> list[str]:
    """Return the pinned packages of a folder's lock file.

    Raises:
        UserError: there is none, or it holds an address with credentials, or more than packages.
    """
    path = folder / LOCK
    if not path.is_file():
        raise UserError(f"submit.environment=lock: there is no {LOCK} in {folder}; make one, or choose none or image")
    lines = [line.partition(" #")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    packages = [line for line in lines if line and not line.startswith("#")]
    for line in packages:
        if redact(line) != line:
            raise UserError(
                f"{path}: {redact(line)} holds credentials, and whoever may list jobs can read the packages; let the "
                "nodes have them, in pip's configuration there (PIP_INDEX_URL, pip.conf)"
            )
        if line.startswith("-"):
            raise UserError(f"{path}: {line} is no package; the cluster's own pip configuration names its index")
    return packages


def locked_versions(packages: list[str]) -> dict[str, str]:
    """Return what a lock allows of each package, as in `==2.13.0`; of one that is named by an address, any version."""
    found = {}
    for line in packages:
        try:
            package = Requirement(line)
        except InvalidRequirement:
            raise UserError(f"{LOCK}: {line} is no package; pip reads it in another way than this program") from None
        if package.marker is None or package.marker.evaluate({"extra": ""}):
            found[canonicalize_name(package.name)] = str(package.specifier)
    return found
