"""The words after a command: flags of ours and of Hydra's, and overrides."""

import os
import re
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.cli.command import COMMANDS
from orchestrator.errors import UserError
from orchestrator.storage.redaction import redact

if TYPE_CHECKING:
    from argparse import Namespace

_AT_A_JOB_SERVER = ("submit", "jobs", "logs", "stop")
_OF_SUBMIT = ("submit.", "hydra.", "hydra/", "command=", "overrides=")
_MISSING = "???"
"""Marks a missing value: validation reports it as it does for any required field."""


def parser_of(name: str) -> Any:
    """Return the parser of Hydra's flags, under the name of a command."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.prog = f"orchestrator {name}"
    parser.error = _refuse_flags  # argparse's own writes what was typed, signatures included
    if name in _AT_A_JOB_SERVER:
        parser.add_argument("--address", metavar="URL", help="The cluster's job server, as http://HOST:8265")
    if name == "submit":
        parser.add_argument("--wait", action="store_true", help="Follow the log, and exit with the job's exit code")
    return parser


def _refuse_flags(message: str) -> NoReturn:
    raise UserError(f"{message}; fields are set without dashes, as FIELD=VALUE")


def read_flags(name: str, arguments: list[str]) -> "Namespace":
    """Return the flags and overrides among the words after a command.

    Raises:
        UserError: a flag is unknown, or flags exclude each other.
    """
    flags = parser_of(name).parse_intermixed_args(arguments)
    flags.overrides = _as_fields(name, flags)
    if flags.experimental_rerun:
        raise UserError("--experimental-rerun reads a pickle, which runs code; give the command's own overrides again")
    if flags.resolve and not flags.cfg:
        raise UserError("--resolve needs --cfg")
    if sum(map(bool, (flags.run, flags.cfg, flags.multirun, flags.info, flags.shell_completion))) > 1:
        raise UserError("--run, --multirun, --cfg, --info and --shell-completion exclude each other; give one")
    if flags.shell_completion:
        _check_completion(flags.overrides)
    return flags


def second_command(command: str, words: list[str]) -> str | None:
    """Return the command that is named after one that takes another's settings, as in `plan finetune`."""
    return words[0] if words and words[0] in COMMANDS[command].seconds else None


def _check_completion(words: list[str]) -> None:
    asked = [word.partition("=")[0] for word in words if word.startswith(("install=", "uninstall=", "query="))]
    if len(asked) != 1:
        raise UserError("--shell-completion needs one of install=SHELL and uninstall=SHELL (bash, zsh or fish)")
    if asked == ["query"] and "COMP_LINE" not in os.environ:
        raise UserError("--shell-completion query=SHELL is for the shell itself, which gives the line in COMP_LINE")


def _as_fields(command: str, flags: "Namespace") -> list[str]:
    """Return the words after a command as overrides, since Hydra accepts nothing but fields."""
    words = flags.overrides
    if command == "submit":
        return _submission(flags)
    if command in ("logs", "stop"):
        words = _named(command, words)
    elif command == "runs" and words[:1] == ["show"]:
        words = _named(command, words[1:])
    elif command == "runs" and words[:1] == ["prune"]:
        names = [word for word in words[1:] if "=" not in word]
        fields = [word for word in words if word not in names]
        words = [*fields, *([f"names=[{','.join(map(_quoted, names))}]"] if names else [])]
    elif command == "batch":  # Hydra takes `checkpoint` for the group of that name
        words = [re.sub(r"^checkpoint=", "checkpoint.step=", word) for word in words]
    address = getattr(flags, "address", None)
    return [*words, f"address={_quoted(address)}"] if address is not None else words


def _named(command: str, words: list[str]) -> list[str]:
    """Return `runs show NAME` as `name=NAME`, and `logs NAME follow` as `name=NAME follow=true`."""
    names = [word for word in words if "=" not in word]
    fields = [word for word in words if "=" in word]
    if command == "logs" and names[1:2] == ["follow"]:
        names, fields = names[:1] + names[2:], ["follow=true", *fields]
    given = (
        [f"name={names[0]}"]
        if names
        else []
        if any(word.startswith("name=") for word in fields)
        else [f"name={_MISSING}"]
    )
    return [*given, *names[1:], *fields]


def _submission(flags: "Namespace") -> list[str]:
    """Return `submit COMMAND overrides…` as fields; those of `submit` may stand anywhere.

    Raises:
        UserError: a flag does not go together with submitting.
    """
    if flags.config_path or flags.config_name:
        raise UserError("--config-path, --config-name: submit finds a command's options by its name; use --config-dir")
    own = [word for word in flags.overrides if word.startswith(_OF_SUBMIT)]
    others = [word for word in flags.overrides if word not in own]
    own += [f"submit.address={_quoted(flags.address)}"] if flags.address is not None else []
    own += ["submit.wait=true"] if flags.wait else []
    if flags.multirun:  # it is for the command, which runs there
        flags.multirun, own = False, [*own, "submit.multirun=true"]
    if others and "=" in others[0]:
        example = "orchestrator submit pretrain +experiment=quickstart"
        raise UserError(f"{redact(others[0])}: name the command before its settings, as in {example}")
    given = [f"command={others[0]}"] if others else []
    settings = [f"overrides=[{','.join(map(_quoted, others[1:]))}]"] if others[1:] else []
    return [*given, *settings, *own]


def _quoted(text: str) -> str:
    """Return a text in quotes as Hydra's grammar reads it."""
    escaped = re.sub(r'(\\*)("|$)', lambda part: part[1] * 2 + ('\\"' if part[2] else ""), text)
    return f'"{escaped}"'
