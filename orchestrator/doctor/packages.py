"""Installed versions, compared with those allowed, those tested together, and those known to be bad."""

import importlib.metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from orchestrator.doctor.findings import Finding

TESTED = {
    "torch": "2.13.0",
    "pytorch-lightning": "2.6.6",
    "deepspeed": "0.19.8",
    "ray": "2.60.0",
    "hydra-core": "1.3.8",
    "omegaconf": "2.3.1",
    "wandb": "0.31.0",
    "fsspec": "2026.9.0",
}
"""As in requirements.lock."""
PROJECT = "gpt-orchestrator"
_MALICIOUS = {"pytorch-lightning": ("2.6.2", "2.6.3")}
"""GHSA-w37p-236h-pfx3."""
WHY_NOT_OTHERS = {
    **dict.fromkeys(("torch", "pytorch-lightning", "deepspeed", "ray", "hydra-core"), "private parts of it are used"),
    "omegaconf": "Hydra 1.3 works with releases below 2.4 alone",
}


def versions() -> Finding:
    """Compare the installed versions with the project's own ranges, then with the tested ones."""
    installed = {name: installed_version(name) for name in TESTED}
    for name, bad in _MALICIOUS.items():
        if installed[name] in bad:
            return Finding(
                "failure",
                f"{name} {installed[name]} is a malicious release (GHSA-w37p-236h-pfx3)",
                f"delete the environment, install {_pin(name)}, and change every key that was on this machine",
            )
    missing = [name for name, version in installed.items() if version is None]
    if missing:
        return Finding("failure", f"not installed: {', '.join(missing)}", _install(missing))
    return _compared({name: version for name, version in installed.items() if version is not None})


def _compared(installed: dict[str, str]) -> Finding:
    allowed = allowed_ranges()
    outside = [name for name, version in installed.items() if name in allowed and not _fits(version, allowed[name])]
    if outside:
        text = "; ".join(_refused(name, installed[name], allowed[name]) for name in outside)
        return Finding("failure", text, _install(outside))
    others = [name for name, version in installed.items() if _release(version) != TESTED[name]]
    if others:
        text = ", ".join(f"{name} {installed[name]} (tested: {TESTED[name]})" for name in others)
        return Finding("warning", f"not tested with {text}", _install(others))
    return Finding("ok", f"as tested: torch {installed['torch']}, ray {installed['ray']} and {len(TESTED) - 2} others")


def _refused(name: str, version: str, allowed: SpecifierSet) -> str:
    why = f": {WHY_NOT_OTHERS[name]}" if name in WHY_NOT_OTHERS else ""
    return f"{name} {version} is outside {allowed} (tested: {TESTED[name]}){why}"


def allowed_ranges() -> dict[str, SpecifierSet]:
    """Return the ranges in pyproject.toml; none where the project is not installed but run from a checkout."""
    requirements = map(Requirement, _requirements())
    core = (one for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""}))
    return {canonicalize_name(one.name): one.specifier for one in core}


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _fits(version: str, allowed: SpecifierSet) -> bool:
    # a pre-release within the range is untested like any other version in it
    return allowed.contains(version, prereleases=True)


def installed_version(name: str) -> str | None:
    """Return the installed version of a distribution; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str) -> str:
    """Return `2.13.0` for `2.13.0+cpu`: the suffix names the platform's build."""
    return version.partition("+")[0]


def _pin(name: str) -> str:
    return f"{name}=={TESTED[name]}"


def _install(names: list[str]) -> str:
    return f"pip install {' '.join(map(_pin, names))}"
