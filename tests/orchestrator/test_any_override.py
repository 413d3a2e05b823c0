"""Whatever is typed after a command is a valid configuration, or a mistake that is explained at once."""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.config import Config
from orchestrator.cli import main
from orchestrator.cli.command import COMMANDS
from orchestrator.configuration import commands
from orchestrator.configuration.schema import config_classes, leaves

pytestmark = pytest.mark.slow

KINDS: dict[str, type[Config]] = {name: getattr(commands, command.config) for name, command in COMMANDS.items()}
SHORT = settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
LONG = settings(SHORT, derandomize=False, max_examples=150)

NUMBERS = (
    "0",
    "-1",
    "1",
    "9" * 24,
    "-" + "9" * 24,
    "9" * 5000,
    "1e400",
    "1e308",
    "1e-400",
    "nan",
    "-inf",
    "1.5",
    "0x10",
)
LISTS = ("[]", "[1]", "[1,2]", "[[1]]", "[nan,null]", "[{a:1}]", "{}", "{a:1}", "{a:{b:[1]}}", "[" * 40 + "]" * 40)
WORDS = (
    "true",
    "null",
    "",
    "???",
    "x",
    "é",
    "x" * 300,
    "${x}",
    "${",
    "'",
    '"',
    "\\",
    "}",
    "[1,",
    "~",
    "@",
    "a b",
    "a,b",
)
CALLS = ("range(1,5)", "range(0,3,0)", "choice(a,b)", "interval(1,2)", "tag(a,b)", "glob(*)", "int(x)", "sort(3,1)")
VALUES = st.one_of(st.sampled_from([*NUMBERS, *LISTS, *WORDS, *CALLS]), st.text(max_size=12))
TAILS = st.sampled_from(["", "", "", ".x", ".0", ".0.steps", ".steps", ".", ".-1", ".x.y.z", "@x"])
PREFIXES = st.sampled_from(["", "", "", "+", "++", "~", "+~"])
SIGNS = st.sampled_from(["=", "=", "=", "", "=="])


def overrides(command: str) -> st.SearchStrategy[str]:
    """Return arguments that address, rightly or not, what the command has."""
    fields = [path for path, _ in leaves(KINDS[command])]
    groups = sorted({path.rpartition(".")[0] for path in fields if "." in path})
    keys = st.sampled_from([*fields, *groups, "faults", "experiment", "hydra", "hydra.mode", "hydra.run.dir"])
    return st.builds(lambda *parts: "".join(parts), PREFIXES, keys, TAILS, SIGNS, VALUES)


NEEDED = {
    "evaluate": ["model.path=x"],
    "generate": ["model.path=x"],
    "run": ["+pipeline=quickstart"],
    "submit": ["runs"],
    "logs": ["x"],
    "stop": ["x"],
}
"""What a command cannot do without."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> list[Config]:
    """Collect the configurations that commands are started with, in an empty folder."""
    configs: list[Config] = []
    for name in COMMANDS:
        module = types.ModuleType(f"orchestrator.commands.{name}")
        vars(module)["run"] = lambda config, *_: configs.append(config)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return configs


def check(command: str, words: list[str], started: list[Config], capsys: pytest.CaptureFixture[str]) -> None:
    started.clear()
    needed = NEEDED.get(command, [])
    code = main([command, *needed, *words])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert all(isinstance(config, KINDS[command]) for config in started)
    assert (code, bool(started), said.err[:7]) in ((0, True, ""), (2, False, "error: "))
    assert {path.name for path in Path.cwd().iterdir()} <= {".hypothesis"}


@pytest.mark.parametrize("command", COMMANDS)
@SHORT
@given(data=st.data())
def test_any_override_is_valid_or_explained(
    command: str, data: st.DataObject, started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    check(command, data.draw(st.lists(overrides(command), min_size=1, max_size=3)), started, capsys)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", COMMANDS)
@LONG
@given(data=st.data())
def test_any_override_is_valid_or_explained_long(
    command: str, data: st.DataObject, started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    words = data.draw(st.lists(overrides(command), min_size=1, max_size=3))
    check(command, [*words, *data.draw(st.sampled_from([[], [], ["--multirun"]]))], started, capsys)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["objective.phases.steps=0"], "objective.phases is a list; write objective.phases.0.steps for its first item"),
        (["optimizer.betas.x=1"], "optimizer.betas is a list; write optimizer.betas.0 for its first item"),
        (["objective.phases.7.steps=1"], "objective.phases.7.steps=1: list index out of range"),
        (["~optimizer.betas.0"], "list indices must be integers"),
        (["tokenizer@x=3"], "must be a string"),
        (["model.hidden_dim=" + "9" * 24], "must be at most 1048576"),
        (["model.num_heads=" + "9" * 5000], "cannot be read"),
        (["cluster=ray", "strategy=ddp", "cluster.num_workers=[1,99999999]"], "must be at most 65536"),
        (["training.num_steps=true"], "training.num_steps=true: must be a number"),
        (["--multirun", "run.seed=range(0,10000000000)"], "these are 10,000,000,000 runs; a sweep has 1 to 10,000"),
        (["--multirun", "run.seed=range(3,0)"], "these are 0 runs"),
        (["--multirun", "run.name=glob(*)"], "run.name=glob(*): must begin with"),
        (["--multirun", "run.seed=interval(1,2)"], "--multirun: "),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_value_that_nobody_thought_of_is_explained(
    words: list[str], part: str, started: list[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *words]) == 2
    assert part in capsys.readouterr().err


def numbers(root: type[Config], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and the metadata of every number in a configuration, in lists and alternatives, too."""
    for name, field in root.model_fields.items():
        for kind in config_classes(field.annotation):
            yield from numbers(kind, f"{path}{name}.")
        yield from ((path + name, limits) for limits in _limits(field.annotation, field.metadata))


def _limits(annotation: Any, metadata: list[Any]) -> Iterator[list[Any]]:
    if annotation in (int, float):
        yield metadata
    elif hasattr(annotation, "__metadata__"):
        yield from _limits(annotation.__origin__, [*metadata, *annotation.__metadata__])
    else:
        for part in get_args(annotation):
            yield from _limits(part, metadata)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_has_an_upper_bound(command: str) -> None:
    found = [*numbers(KINDS[command])]
    assert [path for path, limits in found if not _is_bounded(limits)] == []
    assert len(found) > 40 or command != "pretrain"


def _is_bounded(limits: list[Any]) -> bool:
    inner = [item for limit in limits for item in getattr(limit, "metadata", [limit])]
    return any(hasattr(item, "le") or hasattr(item, "lt") for item in inner)
