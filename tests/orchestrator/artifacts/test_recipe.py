"""Which settings determine the result, as declared by the type of each field of each command."""

from collections.abc import Iterator
from typing import Any

import pytest

from modules.config import Config, DataConfig, Role
from orchestrator.artifacts.recipe import fingerprint, identity
from orchestrator.cli.command import COMMANDS
from orchestrator.configuration import commands
from orchestrator.configuration.schema import config_classes, group_class

NOT_IN_A_RECIPE = {
    "storage",
    "strategy",
    "cluster",
    "checkpoint",
    "export",
    "tracking",
    "faults",
    "device",
    "link",
    "plan",
    "submit",
}
"""Groups that only say where and how a command runs."""
RUNTIME_FIELDS = {
    *(
        "run.name",
        "sweep.name",
        "sweep.num_trials",
        "data.num_processes",
        "data.zstd_window_bytes",
        "guard.max_consecutive",
        "guard.max_rollbacks",
        "batch_size",
        "harness.batch_size",
    ),
    *(f"training.{name}" for name in ("micro_batch_size", "val_interval_steps", "val_batches", "log_interval_steps")),
    *("sample", "worker"),
    *("dry_run", "force", "keep_going", "only", "pipeline.name"),
    *(
        "training.gc_interval_steps",
        "training.compile",
        "training.activation_checkpointing",
        "training.head_loss",
        "fix",
        "build",
        "name",
        "to",
        "output",
        "max_tokens",
        "command",
        "overrides",
        "address",
        "allow_insecure",
        "follow",
        "prepack",
        "num_samples",
        "title",
        "wandb",
    ),
}
INPUT_FIELDS = {
    "runs",
    "stages",
    "graph",
    "data.path",
    "data.val_path",
    "data.test_path",
    "data.revision",
    "data.deduplicate.against",
    "data.decontaminate.path",
    "tokenizer.path",
    "model.path",
    "model.revision",
    "step",
    "other.path",
    "other.revision",
    "other.adapter",
    "model.adapter",
    "other.predictions",
    "prompts_file",
    "chat_template",
    "task.chat_template",
    "harness.include_path",
}


def example(kind: type[Config], **given: Any) -> Config:
    """Return a configuration without an empty group; nothing is validated."""
    values = dict(given)
    for name, field in kind.model_fields.items():
        group = group_class(field)
        if group:
            values[name] = example(group)
        elif field.is_required():
            values[name] = "given"
    return kind.model_construct(**values)


def leaves(config: Config, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every field that is not a group."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, Config) else [prefix + name]


def changed(config: Config, path: str) -> Config:
    """Return `config` with another value at `path`."""
    name, _, rest = path.partition(".")
    value = changed(getattr(config, name), rest) if rest else "another value"
    return config.model_copy(update={name: value})


COMMAND_FIELDS = [
    (command, path) for command in COMMANDS for path in leaves(example(getattr(commands, COMMANDS[command].config)))
]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the other value does not have the field's type
@pytest.mark.parametrize(("command", "path"), COMMAND_FIELDS, ids=lambda value: str(value))
def test_a_recipe_changes_with_a_field_that_decides_content_and_with_no_other(command: str, path: str) -> None:
    config = example(getattr(commands, COMMANDS[command].config))
    is_elsewhere = path in RUNTIME_FIELDS | INPUT_FIELDS or path.partition(".")[0] in NOT_IN_A_RECIPE
    same = fingerprint(identity(changed(config, path))) == fingerprint(identity(config))
    assert same == is_elsewhere


def all_classes(kind: type[Config]) -> Iterator[type[Config]]:
    """Yield a class and all classes within it, including those in lists."""
    yield kind
    for field in kind.model_fields.values():
        for inner in config_classes(field.annotation):
            yield from all_classes(inner)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_says_by_its_type_what_it_decides(command: str) -> None:
    for kind in all_classes(getattr(commands, COMMANDS[command].config)):
        for name, field in kind.model_fields.items():
            roles = [item for item in field.metadata if isinstance(item, Role)]
            assert len(roles) == (0 if group_class(field) else 1), f"{kind.__name__}.{name}"


def test_a_field_that_came_later_is_in_the_recipe_only_if_it_is_set() -> None:
    assert not {"missing", "csv_delimiter"} & set(identity(DataConfig()))
    assert identity(DataConfig(missing="skip"))["missing"] == "skip"
    assert identity(DataConfig(csv_delimiter=";"))["csv_delimiter"] == ";"
