"""Which versions are installed, beside those that were tested together and those that are known to be bad."""

import importlib.metadata

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
_MALICIOUS = {"pytorch-lightning": ("2.6.2", "2.6.3")}
"""GHSA-w37p-236h-pfx3."""
_FIRST_OMEGACONF_UNKNOWN_TO_HYDRA = (2, 4)


def versions() -> Finding:
    """Compare the installed versions with the tested ones."""
    installed = {name: _version(name) for name in TESTED}
    for name, bad in _MALICIOUS.items():
        if installed[name] in bad:
            return Finding(
                "failure",
                f"{name} {installed[name]} is a malicious release (GHSA-w37p-236h-pfx3)",
                f"delete the environment, install {_pin(name)}, and change every key that was on this machine",
            )
    missing = [name for name, version in installed.items() if version is None]
    if missing:
        return Finding("failure", f"not installed: {', '.join(missing)}", f"pip install {' '.join(map(_pin, missing))}")
    if _numbers(installed["omegaconf"] or "")[:2] >= _FIRST_OMEGACONF_UNKNOWN_TO_HYDRA:
        text = f"omegaconf {installed['omegaconf']}: Hydra 1.3 works with releases below 2.4 alone"
        return Finding("failure", text, f"pip install {_pin('omegaconf')}")
    return _compared(installed)


def _compared(installed: dict[str, str | None]) -> Finding:
    others = [name for name, version in installed.items() if _release(version) != TESTED[name]]
    if others:
        told = ", ".join(f"{name} {installed[name]} (tested: {TESTED[name]})" for name in others)
        return Finding("warning", f"not tested with {told}", f"pip install {' '.join(map(_pin, others))}")
    return Finding("ok", f"as tested: torch {installed['torch']}, ray {installed['ray']} and {len(TESTED) - 2} others")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(version: str | None) -> str:
    """Return `2.13.0` of `2.13.0+cpu`: the build is the platform's."""
    return (version or "").partition("+")[0]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _release(version).split(".")[:3] if part.isdigit())


def _pin(name: str) -> str:
    return f"{name}=={TESTED[name]}"
