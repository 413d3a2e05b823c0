"""The only module that calls Hydra: arguments -> Hydra composes -> plain dict -> validated configuration -> command."""

import contextlib
import importlib
import importlib.metadata
import io
import logging
import math
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modules.errors import InputError
from orchestrator.display import streams
from orchestrator.distributed.runtime import STOP_SIGNALS
from orchestrator.errors import ConfigError, OrchestratorError, StoppedError, UserError, exit_code
from orchestrator.storage.redaction import redact

if TYPE_CHECKING:
    from argparse import Namespace

    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

    from modules.config import Config


@dataclass(frozen=True)
class Command:
    """One command of the command line; `orchestrator.commands.<name>.run` executes it."""

    summary: str
    config: str
    """Name of its class in orchestrator.configuration.commands; conf/<name>.yaml is its primary configuration."""
    makes: bool = False
    """It makes something that outlives it, and so goes on when its output is no longer read or cannot be written."""


COMMANDS = {
    "prepare": Command("turn text into token shards", "PrepareConfig", makes=True),
    "pretrain": Command("train a model on text, preparing it first where needed", "PretrainConfig", makes=True),
    "evaluate": Command("measure how well a model predicts held-out text", "EvaluateConfig"),
    "generate": Command("continue a prompt", "GenerateConfig"),
    "runs": Command("list the runs, or show one of them", "RunsConfig"),
    "doctor": Command("check machine, storage and services, each with a remedy", "DoctorConfig"),
}

_MOST_SWEPT = 10_000
DONE, FAILURE, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: one of those below `COMMANDS`, or `streams.UNREAD`.

    Args:
        argv: the arguments after the program's name; None takes them from sys.argv, and makes the process's standard
            streams fit for use.
    """
    if argv is None:
        streams.open_standard_streams()
        streams.restart_in_utf8()
        streams.end_when_unread()
    return streams.exit_code(_exit_code(list(sys.argv[1:] if argv is None else argv)))


def _exit_code(arguments: list[str]) -> int:
    try:
        with _termination_unwinds():
            return _main(arguments)
    except streams.LostOutputError:
        return DONE  # the streams know why
    except ConfigError as error:
        lines = str(error).splitlines()
        return _failed("\n  ".join([f"{len(lines)} mistakes:", *lines]) if len(lines) > 1 else error, MISTAKE)
    except (UserError, InputError) as error:
        return _failed(error, MISTAKE)
    except StoppedError as stop:
        print(redact(str(stop)), file=sys.stderr)
        return exit_code(stop.signal_number)
    except OrchestratorError as error:
        return _failed(error, FAILURE)
    except KeyboardInterrupt:
        return _failed("interrupted", INTERRUPTED)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILURE if stop.code else DONE
    except Exception:
        print(redact(traceback.format_exc()), file=sys.stderr, end="")
        return FAILURE


def conf_folder() -> Path:
    """Return the folder of the options: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def _failed(error: object, code: int) -> int:
    print(f"error: {redact(str(error))}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _termination_unwinds() -> Iterator[None]:
    """Raise SystemExit at a notice of termination, so that open resources are closed, as Python does for Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _main(arguments: list[str]) -> int:
    _check_readable(arguments)
    first = arguments[0] if arguments else ""
    if first in ("--help", "-h", ""):
        print(_overview(), file=sys.stdout if first else sys.stderr)
        return DONE if first else MISTAKE
    if first == "--version":
        print(f"orchestrator {importlib.metadata.version('gpt-orchestrator')}")
        return DONE
    if first in ("--shell-completion", "-sc"):
        return _complete(arguments)
    if first not in COMMANDS:
        raise UserError(_unknown_command(first))
    _run_command(first, arguments[1:])
    return DONE


def _check_readable(arguments: list[str]) -> None:
    for text in arguments:
        try:
            text.encode()
        except UnicodeEncodeError:  # Python has decoded what is no UTF-8 as lone surrogates
            rule = "holds bytes that are no UTF-8; write it in UTF-8, and rename the file if it is a path"
            raise UserError(f"{text!a}: {rule}") from None


def _overview() -> str:
    lines = [f"  {name:10} {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "orchestrator: raw text to a tracked, trained and evaluated GPT.",
            "",
            "Usage: orchestrator COMMAND [GROUP=OPTION ...] [FIELD=VALUE ...]",
            "",
            "Commands:",
            *lines,
            "",
            "orchestrator COMMAND --help lists the command's groups, options and fields.",
            "orchestrator --version prints the version.",
            'eval "$(orchestrator -sc install=bash)" makes the shell complete (also zsh, fish).',
        ]
    )


def _unknown_command(name: str) -> str:
    from orchestrator.configuration.schema import nearest

    near = nearest(name, list(COMMANDS))
    remedy = f"did you mean {near}?" if near else f"choose one of {', '.join(COMMANDS)}"
    return f"{name}: no such command; {remedy}"


def _run_command(name: str, arguments: list[str]) -> None:
    try:
        os.getcwd()
    except OSError:  # Hydra and relative paths need it
        raise UserError("the current folder no longer exists; change to another one") from None
    flags = _flags(name, arguments)
    with _hydra(name, flags) as hydra, _hydra_errors_in_one_line():
        session = _Session(hydra, name, flags)
        if flags.help:
            session.print_help()
        elif flags.hydra_help:
            hydra.hydra_help(config_name=session.primary, args_parser=_parser(name), args=flags)
        elif flags.shell_completion:
            hydra.shell_completion(config_name=session.primary, overrides=flags.overrides)
        elif flags.cfg or flags.info:
            session.print_composed()
        elif session.sweeps:
            session.run_all()
        else:
            session.run()


def _parser(name: str) -> Any:
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.prog = f"orchestrator {name}"
    parser.error = _refuse_flags  # argparse's own writes what was typed, signatures included
    return parser


def _refuse_flags(message: str) -> NoReturn:
    raise UserError(f"{message}; fields are set without dashes, as FIELD=VALUE")


def _flags(name: str, arguments: list[str]) -> "Namespace":
    flags = _parser(name).parse_intermixed_args(arguments)
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


@contextlib.contextmanager
def _hydra(name: str, flags: "Namespace") -> Iterator["Hydra"]:
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.config_search_path import SearchPathQuery
    from hydra.core.global_hydra import GlobalHydra

    version.setbase("1.3")
    conf = Path(flags.config_path).resolve() if flags.config_path else conf_folder()
    search_path = create_config_search_path(str(conf))
    if flags.config_dir:
        folder = Path(flags.config_dir).resolve()
        if not folder.is_dir():
            raise UserError(f"--config-dir {flags.config_dir}: no such folder")
        search_path.prepend(provider="command-line", path=f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2(task_name=name, config_search_path=search_path)
    finally:
        GlobalHydra.instance().clear()


class _Session:
    """One command's arguments, and the configuration that Hydra composes from them."""

    def __init__(self, hydra: "Hydra", name: str, flags: "Namespace") -> None:
        from orchestrator.configuration import commands as config

        self.hydra, self.name, self.flags = hydra, name, flags
        self.primary = flags.config_name or name
        self.kind: type[Config] = getattr(config, COMMANDS[name].config)
        self.sweeps = bool(flags.multirun) or "hydra.mode=MULTIRUN" in flags.overrides
        self.groups = self._groups()
        self.overrides, self.mistakes = self._read_overrides()

    def run(self) -> None:
        from orchestrator.configuration.mistakes import validated

        _start(self.name, validated(self._composed(self.overrides), self.kind, earlier=self.mistakes))

    def run_all(self) -> None:
        """Run every combination of a sweep; nothing starts unless all of them are valid."""
        import tempfile

        self._check_all()
        with tempfile.TemporaryDirectory(prefix="orchestrator-sweep-") as folder:
            # Hydra's sweeper writes its own record there, overrides included; the commands make the runs' folders
            own = [] if _checked_sweep_folder(self.overrides) else [folder]
            overrides = [*self.overrides, "hydra.mode=MULTIRUN", *(f"hydra.sweep.dir={path}" for path in own)]
            with _restored_logging():
                logging.getLogger("hydra").setLevel(logging.WARNING)  # below WARNING, its launcher logs every override
                self.hydra.multirun(config_name=self.primary, task_function=self._run_one, overrides=overrides)

    def print_composed(self) -> None:
        """Print what --cfg or --info requests.

        Raises:
            ConfigError: the configuration has a mistake other than a missing value.
        """
        from orchestrator.configuration.mistakes import mistakes_in

        mistakes = self.mistakes + mistakes_in(self._composed(self.overrides), self.kind, missing_too=False)
        if mistakes:
            raise ConfigError("\n".join(mistakes))
        where = {"config_name": self.primary, "overrides": self.overrides}
        flags = self.flags
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            try:
                if flags.cfg:
                    self.hydra.show_cfg(**where, cfg_type=flags.cfg, package=flags.package, resolve=flags.resolve)
                else:
                    with _restored_logging():
                        self.hydra.show_info(flags.info, **where)
            except SystemExit:  # Hydra's way to say that there is no such package
                raise ConfigError(shown.getvalue().strip()) from None
        print(redact(shown.getvalue()), end="")

    def print_help(self) -> None:
        from orchestrator.configuration import command_help

        folders = [Path(path) for path in (self.flags.config_dir, self.flags.config_path) if path]
        raw = self._composed(self.overrides)
        summary = COMMANDS[self.name].summary
        command_help.print_help(self.name, summary, self.kind, raw, self.groups, [*folders, conf_folder()])

    def _groups(self) -> Any:
        from hydra.core.object_type import ObjectType
        from hydra.types import RunMode

        from orchestrator.configuration.overrides import Groups

        loader = self.hydra.config_loader
        known = loader.compute_defaults_list(self.primary, [], RunMode.RUN).overrides.known_choices
        ours = [group for group in self.hydra.list_all_config_groups() if group.partition("/")[0] != "hydra"]
        return Groups(
            chosen={group: known[group] for group in ours if group in known},
            options={group: tuple(sorted(loader.get_group_options(group, ObjectType.CONFIG))) for group in ours},
            foreign=frozenset(group for group in ours if group not in known and (conf_folder() / group).is_dir()),
        )

    def _read_overrides(self) -> tuple[list[str], list[str]]:
        from orchestrator.configuration.overrides import Reader

        reader = Reader(self.name, self.kind, self.groups, self.sweeps)
        overrides, mistakes = [], []
        for text in self.flags.overrides:
            try:
                overrides.append(reader.rewritten(text, _parsed(text)))
            except ConfigError as mistake:
                mistakes.append(str(mistake))
        return overrides, mistakes

    def _composed(self, overrides: Sequence[str]) -> Any:
        """Return the composed values as plain containers.

        Raises:
            ConfigError: Hydra cannot compose them.
        """
        from hydra.types import RunMode

        try:
            with _hydra_errors_in_one_line():
                return _plain(self.hydra.compose_config(self.primary, list(overrides), RunMode.RUN))
        except Exception as error:  # Hydra has read nothing but the arguments, and raises whatever it comes upon
            raise ConfigError("\n".join([*self.mistakes, _first_line(error)])) from error

    def _check_all(self) -> None:
        from orchestrator.configuration.mistakes import mistakes_in

        fixed = [text for text in self.overrides if text.startswith("hydra")]
        mistakes = list(self.mistakes)
        for job in _jobs([text for text in self.overrides if text not in fixed]):
            mistakes += mistakes_in(self._composed([*job, *fixed]), self.kind)
        if mistakes:
            raise ConfigError("\n".join(dict.fromkeys(mistakes)))

    def _run_one(self, cfg: "DictConfig") -> None:
        from hydra.core.hydra_config import HydraConfig

        from orchestrator.configuration.mistakes import validated

        job = HydraConfig.get()
        print(redact(" ".join([f"[{job.job.num}]", *(text.lstrip("+") for text in job.overrides.task)])), flush=True)
        _start(self.name, validated(_plain(cfg), self.kind))


def _start(name: str, config: "Config") -> None:
    if COMMANDS[name].makes:
        streams.go_on_unread()
    importlib.import_module(f"orchestrator.commands.{name}").run(config)


@contextlib.contextmanager
def _restored_logging() -> Iterator[None]:
    """Restore the loggers afterwards: --info prints through the root logger, as records of level DEBUG."""
    root, hydra = logging.getLogger(), logging.getLogger("hydra")
    levels, handlers = (root.level, hydra.level), list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(levels[0])
        hydra.setLevel(levels[1])
        root.handlers[:] = handlers


@contextlib.contextmanager
def _hydra_errors_in_one_line() -> Iterator[None]:
    """Turn an error of Hydra or OmegaConf into a ConfigError with its first line."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    """Return the first line of an error of Hydra, with the reason where it says no more than what it did."""
    from orchestrator.storage.redaction import redact

    text = str(error).strip() or str(error.__cause__)
    override = re.match(r"Error merging override \+*(.*)", text)
    if override and error.__cause__:
        text = f"{override[1]}: {str(error.__cause__).strip() or type(error.__cause__).__name__}"
    return redact(text.splitlines()[0])


def _parsed(text: str) -> Any:
    """Return the override that Hydra's grammar reads in `text`; None if it cannot be parsed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError):  # the latter two at numbers and nestings that are too long
        return None


def _jobs(overrides: Sequence[str]) -> Sequence[Sequence[str]]:
    """Return the overrides of each run of a sweep.

    Raises:
        ConfigError: there is none, or there are too many to list, or Hydra cannot list them.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.errors import HydraException

    swept = [override for text in overrides if (override := _parsed(text))]
    try:
        number = math.prod(map(_num_values, swept))
        if not 0 < number <= _MOST_SWEPT:
            raise ConfigError(f"--multirun: these are {number:,} runs; a sweep has 1 to {_MOST_SWEPT:,}")
        return BasicSweeper.split_arguments(swept, None)[0]
    except HydraException as error:  # it handles some kinds of sweep alone
        raise ConfigError(f"--multirun: {_first_line(error)}") from error


def _checked_sweep_folder(overrides: Sequence[str]) -> bool:
    """Return whether a folder for the record of a sweep is set.

    Raises:
        UserError: it cannot be made.
    """
    folders = [text.partition("=")[2] for text in overrides if text.startswith("hydra.sweep.dir=")]
    try:
        for folder in folders:
            if "${" not in folder:
                Path(folder.strip("'\"")).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"hydra.sweep.dir={folders[-1]}: cannot be made ({error.strerror})") from None
    return bool(folders)


def _num_values(override: Any) -> int:
    """Return how many runs of a sweep an override asks for, without listing them."""
    value = override.value()
    if override.is_range_sweep():
        return max(0, math.ceil((value.stop - value.start) / value.step)) if value.step else 0
    return len(value.list) if override.is_choice_sweep() else 1


def _plain(cfg: "DictConfig") -> Any:
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    if "hydra" in cfg:
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            cfg.pop("hydra")
    return OmegaConf.to_container(cfg, resolve=True)


def _complete(arguments: list[str]) -> int:
    """Print the completions that the shell queries, or the script that installs completion."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if "query" not in "".join(arguments) or len(words) > 2:
        name = words[1] if len(words) > 1 and words[1] in COMMANDS else next(iter(COMMANDS))
        os.environ["COMP_LINE"] = " ".join(words[:1] + words[2:])
        _run_command(name, arguments)
    else:
        print(" ".join(name for name in COMMANDS if name.startswith("".join(words[1:]))))
    return DONE
