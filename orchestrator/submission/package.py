"""What of a folder is sent to the cluster: the project's own files, in a zip file that depends on nothing else."""

import fnmatch
import json
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.display.units import size
from orchestrator.errors import UserError

FOLDER = "_submission"
"""Of our own files in the package."""
SETTINGS = f"{FOLDER}/settings.json"
ENTRY = f"{FOLDER}/entry.py"
CONFIG_DIR = f"{FOLDER}/conf"
"""The user's folder of options."""
_RESULTS = ("outputs", "multirun", "wandb")
_NOT_AT_THE_TOP = (*_RESULTS, "data", "venv", "env", FOLDER)
_NOWHERE = (".git", ".venv", "__pycache__", "node_modules", ".ipynb_checkpoints", "*.pyc", "*.egg-info", ".*_cache")
_SECRET = (
    *(
        ".env",
        ".env.*",
        ".envrc",
        ".netrc",
        "_netrc",
        ".pypirc",
        "*.pem",
        "*.key",
        "id_rsa*",
        "id_ed25519*",
        "id_ecdsa*",
    ),
    *(".ssh", ".aws", ".azure", ".kube", ".docker", "auth_token", "kubeconfig*", "*credentials*.json", "*secret*.json"),
    *("*secret*.yaml", "*secret*.yml", "*.p12", "*.pfx"),
)
"""Names of files that usually hold keys: what is sent lies readable in the cluster."""
_EARLIEST = (1980, 1, 1, 0, 0, 0)
_NUM_SHOWN = 3


@dataclass(frozen=True)
class Project:
    """The files of a folder that are sent."""

    folder: Path
    files: tuple[str, ...]
    """Relative to the folder, with slashes, sorted."""
    num_bytes: int
    held_back: tuple[str, ...]
    """Files that are not sent because their names are those of secrets."""


@dataclass(frozen=True)
class Options:
    """The files of the user's folder of options that are sent, also those that .gitignore names."""

    folder: Path
    files: tuple[str, ...]
    """Relative to the folder, with slashes, sorted."""
    held_back: tuple[str, ...]
    """Files that are not sent because their names are those of secrets."""


def read_options(folder: Path) -> Options:
    """Return what of a folder of options is sent."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml") if path.is_file()]
    # it may be the project's own folder, with results, whose settings are no options
    names = [name for name in found if not is_never_sent(name) and PurePosixPath(name).parts[0] not in _RESULTS]
    held_back = sorted(name for name in names if _matches(name, _SECRET))
    return Options(folder, tuple(sorted({*names} - {*held_back})), tuple(held_back))


def is_never_sent(name: str) -> bool:
    """Return whether a file lies in an environment, in a history or a cache."""
    return _matches(name, _NOWHERE)


def read_project(folder: Path, max_bytes: int, also_without: Collection[str] = ()) -> Project:
    """Return what of a folder is sent: not data, outputs, environments, secrets, nor what .gitignore names.

    Args:
        also_without: Further folders at the top that stay here.

    Raises:
        UserError: it is larger than `max_bytes`.
    """
    top = {*_NOT_AT_THE_TOP, *also_without}
    names = [name for name in _listed(folder) if PurePosixPath(name).parts[0] not in top and not is_never_sent(name)]
    held_back = sorted(name for name in names if _matches(name, _SECRET))
    files = sorted({*names} - {*held_back})
    sizes = {name: (folder / name).stat().st_size for name in files}
    if sum(sizes.values()) > max_bytes:
        raise UserError(_too_large(folder, sizes, max_bytes))
    return Project(folder, tuple(files), sum(sizes.values()), tuple(held_back))


def _too_large(folder: Path, sizes: Mapping[str, int], max_bytes: int) -> str:
    largest = sorted(sizes, key=lambda name: sizes[name], reverse=True)[:_NUM_SHOWN]
    shown = ", ".join(f"{name} ({size(sizes[name])})" for name in largest)
    return (
        f"submit.max_bytes={max_bytes}: the {len(sizes)} files of {folder} to send have {size(sum(sizes.values()))}; "
        f"the largest are {shown}. Submit from the project's own folder, name what the command does not need in "
        ".gitignore, or raise submit.max_bytes (at most 500 MiB, which Ray takes)"
    )


def _listed(folder: Path) -> list[str]:
    """Return the files below a folder that .gitignore does not name, as git finds them.

    Raises:
        UserError: there is a .gitignore, and no git to read it.
    """
    try:
        found = _git(folder, []) or _git_elsewhere(folder)
    except FileNotFoundError:
        if any(folder.rglob(".gitignore")):
            raise UserError("git is not installed, which reads .gitignore: install it, or submit elsewhere") from None
        found = [str(path.relative_to(folder).as_posix()) for path in folder.rglob("*")]
    return [name for name in found if (folder / name).is_file()]


def _git_elsewhere(folder: Path) -> list[str]:
    """List a folder that is no repository: git needs one, which is made elsewhere."""
    with tempfile.TemporaryDirectory(prefix="orchestrator-git-") as place:
        subprocess.run(["git", "init", "--quiet", "--bare", place], check=True, capture_output=True)
        return _git(folder, [f"--git-dir={place}", f"--work-tree={folder}"]) or []


def _git(folder: Path, place: list[str]) -> list[str] | None:
    """Return the files that git lists; None where the folder is no repository of this user's."""
    listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", *place, *listing], cwd=folder, env=environment, capture_output=True, check=False)
    return os.fsdecode(done.stdout).split("\0")[:-1] if done.returncode == 0 else None


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch.fnmatch(part.lower(), pattern) for part in PurePosixPath(name).parts for pattern in patterns)


def write_package(to: Path, project: Project | None, settings: Mapping[str, Any], options: Options | None) -> None:
    """Write the zip file of a submission.

    Args:
        project: The files of the project; None sends settings alone.
        settings: What the entry on the cluster reads.
        options: The user's folder of options, which the settings may name.
    """
    with zipfile.ZipFile(to, "w", zipfile.ZIP_DEFLATED) as archive:
        if project:
            for name in project.files:
                path = project.folder / name
                _add(archive, name, path.read_bytes(), path.stat().st_mode)
        if options:
            for name in options.files:
                _add(archive, f"{CONFIG_DIR}/{name}", (options.folder / name).read_bytes())
        _add(archive, ENTRY, Path(__file__).with_name("entry.py").read_bytes())
        _add(archive, SETTINGS, json.dumps(settings, indent=1, sort_keys=True).encode())


def _add(archive: zipfile.ZipFile, name: str, content: bytes, mode: int = 0o644) -> None:
    info = zipfile.ZipInfo(name, _EARLIEST)  # without the time of the file, so that the same files are sent once
    info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, (mode & 0o777) << 16
    archive.writestr(info, content)
