"""Where the result of a stage lies, and by which settings a command is told so.

runs/PIPELINE/STAGE-FINGERPRINT/    stage.json, log.txt and what the command writes
stages/FINGERPRINT/                 lease/, begun.json, done.json: the same for all pipelines that share the stage
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modules.config import Config, Role
from orchestrator.configuration.schema import field_at, leaves, takes_texts
from orchestrator.errors import ConfigError
from orchestrator.storage.store import Storage

TRAINS = ("pretrain", "finetune")


@dataclass(frozen=True)
class _Output:
    """What a command makes."""

    result: str
    """Within the stage's folder; empty where the command chooses the place itself."""
    setting: str = ""
    """The setting that says where."""
    told: str = ""
    """What it is set to, within the stage's folder."""
    is_artifact: bool = False


_OUTPUTS = {
    "pretrain": _Output("model", is_artifact=True),
    "finetune": _Output("model", is_artifact=True),
    "prepare": _Output("", is_artifact=True),
    "export": _Output("model", "to", "model", is_artifact=True),
    "explain": _Output("explanation", "to", "explanation", is_artifact=True),
    "evaluate": _Output("evaluation.json", "to", ""),
    "compare": _Output("evaluation.json", "to", ""),
    "predict": _Output("predictions.jsonl", "output", "predictions.jsonl"),
    "generate": _Output("continuations.jsonl", "output", "continuations.jsonl"),
    "report": _Output("report/index.html", "to", "report"),
}
_OWN_SETTINGS = ("storage.root", "run.name", "output", "to")
"""Settings by which the pipeline says where a stage's result lies."""


def check_makes_something(command: str) -> None:
    """Raise ConfigError if a command makes nothing that could be the result of a stage."""
    if command not in _OUTPUTS:
        raise ConfigError(f"command={command}: makes nothing that is kept; a stage is one of {', '.join(_OUTPUTS)}")


def own_settings(words: Sequence[str], kind: type[Config]) -> list[str]:
    """Return a line for each override that would put a stage's result elsewhere than its state."""
    keys = [word.lstrip("+").partition("=")[0] for word in words]
    return [
        f"overrides: {key}: the pipeline sets it, so that results lie beside their state; leave it out"
        for key in keys
        if key in _OWN_SETTINGS and not _is_input(kind, key)
    ]


def folder(pipeline: str, stage: str, fingerprint: str, number: int = 1) -> str:
    """Return the folder of a stage, relative to the storage root; a forced stage gets another number."""
    return f"runs/{pipeline}/{stage}-{fingerprint[:8]}" + (f"-{number}" if number > 1 else "")


def run_name(path: str) -> str:
    """Return the name of the run whose folder it is."""
    return path.removeprefix("runs/")


def is_artifact(command: str) -> bool:
    """Return whether the result of a command is a committed folder; otherwise it is a file."""
    return _OUTPUTS[command].is_artifact


def result_name(command: str, path: str) -> str | None:
    """Return the place of a stage's result, relative to the storage root; None where the command chooses it."""
    result = _OUTPUTS[command].result
    return f"{path}/{result}" if result else None


def leftover(command: str, path: str) -> str:
    """Return the place of what an earlier attempt may have left of a result."""
    output = _OUTPUTS[command]
    return f"{path}/{output.told or output.result}"


def overrides(root: str, kind: type[Config], command: str, path: str) -> list[str]:
    """Return the overrides that say where a stage's result is to lie."""
    words = [f"storage.root={root}"] if field_at(kind, ["storage", "root"]) else []
    if field_at(kind, ["run", "name"]) and not _is_input(kind, "run.name"):
        words.append(f"run.name={run_name(path)}")
    output = _OUTPUTS[command]
    if output.setting:
        words.append(f"{output.setting}={'/'.join(filter(None, [Storage(root).url(path), output.told]))}")
    return words


def input_fields(kind: type[Config]) -> list[str]:
    """Return the dotted names of a command's inputs."""
    return [name for name, field in leaves(kind) if Role.INPUT in field.metadata]


def input_override(
    storage: Storage,
    kind: type[Config],
    setting: str,
    value: tuple[str, ...] | str,
    folders: Mapping[str, str],
    commands: Mapping[str, str],
) -> str:
    """Return the override that gives a command the results of other stages.

    Args:
        setting: The input.
        value: The stage, or the list of stages, that it names.
        folders: Each stage's folder.
        commands: Each stage's command.
    """
    field = field_at(kind, setting.split("."))
    assert field is not None
    if setting == "stages":  # who reads several stages gets all that is in their folders
        names = (value,) if isinstance(value, str) else value
        return f"stages=[{','.join(quoted(folders[name]) for name in names)}]"
    if isinstance(value, str):
        found = _place(storage, setting, folders[value], commands[value])
        return f"{setting}=[{quoted(found)}]" if takes_texts(field) else f"{setting}={found}"
    if not takes_texts(field):
        raise ConfigError(f"inputs.{setting}: takes one stage, not a list")
    found = [quoted(_place(storage, setting, folders[name], commands[name])) for name in value]
    return f"{setting}=[{','.join(found)}]"


def _place(storage: Storage, setting: str, path: str, command: str) -> str:
    """Return what a setting of one value is set to."""
    if setting == "run.name":
        if command not in TRAINS:
            raise ConfigError(f"inputs.{setting}: needs a stage that trains, and this one is {command}")
        return run_name(path)
    if setting.endswith("adapter") and command in TRAINS:
        return storage.url(f"{path}/adapter")
    result = result_name(command, path)
    if result is None:
        raise ConfigError(f"inputs.{setting}: {command} has no result that could be named; use `after`")
    return storage.url(result)


def quoted(text: str) -> str:
    """Return a text as it is typed in an override, whatever is in it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _is_input(kind: type[Config], setting: str) -> bool:
    field = field_at(kind, setting.split("."))
    return field is not None and Role.INPUT in field.metadata
