"""The words after a command: flags of ours and of Hydra's, and overrides."""

import os
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.cli.command import COMMANDS
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from argparse import Namespace


def parser_of(name: str) -> Any:
    """Return the parser of Hydra's flags, under the name of a command."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.prog = f"orchestrator {name}"
    parser.error = _refuse_flags  # argparse's own writes what was typed, signatures included
    return parser


def _refuse_flags(message: str) -> NoReturn:
    raise UserError(f"{message}; fields are set without dashes, as FIELD=VALUE")


def read_flags(name: str, arguments: list[str]) -> "Namespace":
    """Return the flags and overrides among the words after a command.

    Raises:
        UserError: a flag is unknown, or flags exclude each other.
    """
    flags = parser_of(name).parse_intermixed_args(arguments)
    flags.overrides = _with_show_rewritten(name, flags.overrides)
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


def _with_show_rewritten(command: str, words: list[str]) -> list[str]:
    """Return `runs show NAME` as `runs name=NAME`, since Hydra accepts nothing but fields."""
    if command != "runs" or words[:1] != ["show"]:
        return words
    names = [word for word in words[1:] if "=" not in word]
    fields = [word for word in words[1:] if "=" in word]
    # ??? marks a missing value: without a name, validation reports it as it does for any required field
    return [f"name={names[0] if names else '???'}", *names[1:], *fields]
