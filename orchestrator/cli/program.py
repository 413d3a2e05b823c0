"""The program: arguments -> command -> exit code."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import NoReturn

from modules.errors import InputError
from orchestrator import program_version
from orchestrator.cli.command import COMMANDS, unknown_command
from orchestrator.cli.flags import parser_of, read_flags, second_command
from orchestrator.cli.hydra_errors import hydra_errors_in_one_line
from orchestrator.cli.session import Session, hydra_of
from orchestrator.display import streams
from orchestrator.distributed.runtime import STOP_SIGNALS
from orchestrator.errors import ConfigError, OrchestratorError, StoppedError, UserError, exit_code
from orchestrator.storage.redaction import redact

DONE, FAILURE, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: one of those above, or `streams.UNREAD`.

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
        print(f"orchestrator {program_version()}")
        return DONE
    if first in ("--shell-completion", "-sc"):
        return _complete(arguments)
    if first not in COMMANDS:
        raise UserError(unknown_command(first))
    _run_command(first, arguments[1:])
    return DONE


def _check_readable(arguments: list[str]) -> None:
    for text in arguments:
        try:
            text.encode()
        except UnicodeEncodeError:  # Python has decoded what is no UTF-8 as lone surrogates
            rule = "holds bytes that are no UTF-8 (a file of such a name is found by its folder or a glob)"
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


def _run_command(name: str, arguments: list[str]) -> None:
    try:
        os.getcwd()
    except OSError:  # Hydra and relative paths need it
        raise UserError("the current folder no longer exists; change to another one") from None
    flags = read_flags(name, arguments)
    with _driver_of_a_pipeline(), hydra_of(name, flags) as hydra, hydra_errors_in_one_line():
        session = Session(hydra, name, flags)
        if flags.help:
            session.print_help()
        elif flags.hydra_help:
            hydra.hydra_help(config_name=session.primary, args_parser=parser_of(name), args=flags)
        elif flags.shell_completion:
            hydra.shell_completion(config_name=session.primary, overrides=flags.overrides)
        elif flags.cfg or flags.info:
            session.print_composed()
        elif session.sweeps:
            session.run_all()
        else:
            session.run()


@contextlib.contextmanager
def _driver_of_a_pipeline() -> Iterator[None]:
    """End with the pipeline's driver, if this process is one of its stages."""
    if "ORCHESTRATOR_STAGE" not in os.environ:
        yield
        return
    from orchestrator.pipeline.child import followed_driver

    with followed_driver():
        yield


def _complete(arguments: list[str]) -> int:
    """Print the completions that the shell queries, or the script that installs completion."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if "query" not in "".join(arguments) or len(words) > 2:
        name = words[1] if len(words) > 1 and words[1] in COMMANDS else next(iter(COMMANDS))
        rest = words[2:]
        second = rest[:1] if len(rest) > 1 and second_command(name, rest) else []
        os.environ["COMP_LINE"] = " ".join(words[:1] + rest[len(second) :])
        _run_command(name, [*second, *arguments])
    else:
        print(" ".join(name for name in COMMANDS if name.startswith("".join(words[1:]))))
    return DONE
