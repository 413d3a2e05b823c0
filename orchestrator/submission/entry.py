"""Runs in the job, on the cluster: check what is installed there, then run the submitted command in this process.

It is sent as a file of its own and read by whatever Python the cluster has, so it imports only the standard library
until it has looked.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import runpy
import sys


def main() -> None:
    """Run the command of the settings beside this file."""
    settings = json.loads(pathlib.Path(__file__).with_name("settings.json").read_text(encoding="utf-8"))
    sys.path[0] = os.getcwd()
    problem = _problem(settings)
    if problem:
        sys.exit(_refused(problem))
    for line in _differences(settings):
        _say("note: " + line)
    if settings["wandb_key"] and not _has_wandb_key():
        _say(
            "note: the machine that submitted this has a W&B key, and the cluster's head node has none: what it tracks "
            "stays offline. Give the nodes WANDB_API_KEY, from a Kubernetes secret or the environment of `ray start`"
        )
    sys.argv = ["orchestrator", settings["command"], *settings["overrides"]]
    runpy.run_module("orchestrator", run_name="__main__", alter_sys=True)


def _problem(settings):  # type: ignore[no-untyped-def]  # it must be read by any Python 3
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        return "the cluster has Python {}.{}, and 3.11 or 3.12 is needed".format(*sys.version_info[:2])
    if importlib.util.find_spec("orchestrator") is None:
        remedies = {
            "none": "submit from a checkout of the project, or choose submit.environment=lock or image",
            "lock": "submit from a checkout, or name gpt-orchestrator in requirements.lock",
            "image": "start the cluster with an image that has it",
        }
        remedy = remedies[settings["environment"]]
        return "the package gpt-orchestrator is not on the cluster, nor in what was sent; " + remedy
    return _missing(settings) or _other_than_locked(settings["locked"]) or _outside_ranges(settings)


def _remedy(settings):  # type: ignore[no-untyped-def]
    return {
        "none": "install these there (its Python is {}), or choose submit.environment=lock or image",
        "lock": "pin these in requirements.lock",
        "image": "start the cluster with an image that has them",
    }[settings["environment"]].format(sys.executable)


def _missing(settings):  # type: ignore[no-untyped-def]
    needed = {**settings["allowed"], **{name: "==" + version for name, version in settings["tested"].items()}}
    missing = [name + needed[name] for name in needed if _version(name) is None]
    return f"not installed on the cluster: {' '.join(missing)}; {_remedy(settings)}" if missing else ""


def _other_than_locked(locked):  # type: ignore[no-untyped-def]
    others = [f"{name} {_version(name)} (locked: {locked[name]})" for name in locked if not _fits(name, locked[name])]
    if not others:
        return ""
    return (
        f"{sys.executable} has other versions than requirements.lock: {', '.join(others)}; `python` is not that of the "
        "environment which Ray has made of it: start Ray in a virtual environment that was not moved since"
    )


def _outside_ranges(settings):  # type: ignore[no-untyped-def]
    allowed = settings["allowed"]
    found = [f"{name} {_version(name)} (needed: {allowed[name]})" for name in allowed if not _fits(name, allowed[name])]
    return f"of another version on the cluster: {', '.join(found)}; {_remedy(settings)}" if found else ""


def _fits(name, allowed):  # type: ignore[no-untyped-def]
    from packaging.specifiers import SpecifierSet  # Ray needs it as well

    return SpecifierSet(allowed).contains(_version(name) or "0", prereleases=True)


def _differences(settings):  # type: ignore[no-untyped-def]
    """Yield a line for what the cluster has in another version than what was tested, or than who submits."""
    others = [
        name for name in settings["tested"] if (_version(name) or "").partition("+")[0] != settings["tested"][name]
    ]
    if others:
        found = ", ".join(f"{name} {_version(name)} (tested: {settings['tested'][name]})" for name in others)
        yield f"the cluster has {found}"
    python = ".".join(map(str, sys.version_info[:2]))
    if python != settings["python"]:
        yield f"the cluster has Python {python}, and the machine that submitted this {settings['python']}"
    installed = _version("gpt-orchestrator")
    if not os.path.isdir("orchestrator") and installed != settings["version"]:
        yield (
            f"the cluster has gpt-orchestrator {installed}, and the machine that submitted this {settings['version']}, "
            "which has checked the settings; submit from a checkout to send the program as well"
        )


def _version(name):  # type: ignore[no-untyped-def]
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _has_wandb_key() -> bool:
    from orchestrator.runs.tracking import key_place

    return key_place() is not None


def _refused(problem: str) -> int:
    print("error: " + problem, file=sys.stderr, flush=True)  # noqa: T201
    return 2


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
