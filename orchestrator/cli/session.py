"""One command, composed by Hydra: arguments -> plain dict -> validated configuration -> command."""

import argparse
import contextlib
import importlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.command import COMMANDS, conf_folder, unknown_command
from orchestrator.cli.composition import composed, plain
from orchestrator.cli.flags import second_command
from orchestrator.cli.hydra_errors import first_line, hydra_errors_in_one_line
from orchestrator.cli.options import groups_of
from orchestrator.cli.sweep import checked_sweep_folder, is_own, jobs, parsed
from orchestrator.display import streams
from orchestrator.errors import ConfigError, UserError
from orchestrator.storage.local import use_cache_folder
from orchestrator.storage.redaction import redact

if TYPE_CHECKING:
    from argparse import Namespace

    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

    from modules.config import Config


@contextlib.contextmanager
def hydra_of(name: str, flags: "Namespace") -> Iterator["Hydra"]:
    """Yield a Hydra that finds our options, and before them those of the user's folder."""
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


def config_class(name: str) -> "type[Config]":
    """Return the class of a configuration by its name."""
    from orchestrator.configuration import commands as config

    return getattr(config, name)


class Session:
    """One command's arguments, and the configuration that Hydra composes from them."""

    def __init__(self, hydra: "Hydra", name: str, flags: "Namespace") -> None:
        self.hydra, self.name, self.flags = hydra, name, flags
        kind, primary, self.typed = COMMANDS[name].config, name, name
        if second := second_command(name, flags.overrides):
            (kind, primary), self.typed = COMMANDS[name].seconds[second], f"{name} {second}"
            flags.overrides = flags.overrides[1:]
        self.primary = flags.config_name or primary
        self.kind = config_class(kind)
        self.sweeps = bool(flags.multirun) or "hydra.mode=MULTIRUN" in flags.overrides
        self.search = [text for text in flags.overrides if self.sweeps and is_own(text)]
        flags.overrides = [text for text in flags.overrides if text not in self.search]
        self.groups = groups_of(self.hydra, self.primary)
        self.overrides, self.mistakes = self._read(flags.overrides, self.sweeps)

    def run(self) -> None:
        self._start(self.validated())

    def validated(self) -> "Config":
        """Return the configuration.

        Raises:
            ConfigError: it has mistakes.
        """
        from orchestrator.configuration.mistakes import validated

        raw = self._composed(self.overrides)
        misplaced = self._misplaced_sweep(raw)
        return validated(raw, self.kind, earlier=[*self.mistakes, *misplaced])

    def _misplaced_sweep(self, raw: dict[str, Any]) -> list[str]:
        """Take the settings of a sweep out of those of a single run, and return what to say of them."""
        if raw.get("sweep") is None or "sweep" not in self.kind.model_fields:
            return []
        del raw["sweep"]
        typed = next(filter(is_own, self.flags.overrides), "sweep")
        remedy = "name its method on the command line, as in sweep=random" if self.sweeps else "add --multirun"
        return [f"{redact(typed)}: is for several runs; {remedy}"]

    def run_all(self) -> None:
        """Run every combination of a sweep; nothing starts unless all of them are valid."""
        import tempfile

        if self.search:
            self._run_trials()
            return
        self.combinations()
        with tempfile.TemporaryDirectory(prefix="orchestrator-sweep-") as folder:
            # Hydra's sweeper writes its own record there, overrides included; the commands make the runs' folders
            own = [] if checked_sweep_folder(self.overrides) else [folder]
            overrides = [*self.overrides, "hydra.mode=MULTIRUN", *(f"hydra.sweep.dir={path}" for path in own)]
            with _restored_logging():
                logging.getLogger("hydra").setLevel(logging.WARNING)  # below WARNING, its launcher logs every override
                self.hydra.multirun(config_name=self.primary, task_function=self._run_one, overrides=overrides)

    def _run_trials(self) -> None:
        """Run the trials of a search side by side, each as a child process."""
        from orchestrator.cli.trials import run_trials
        from orchestrator.pipeline.places import TRAINS

        if self.typed not in TRAINS:
            rule = f"is for {' and '.join(TRAINS)}; leave it out with {self.typed}"
            raise ConfigError(f"{redact(self.search[0])}: {rule}")
        if self.flags.config_name:
            raise ConfigError("--config-name: a sweep finds a command's options by its name; use an experiment instead")
        run_trials(self.name, self.search_settings(), self.flags.overrides, Composer(self.hydra, self.flags))

    def search_settings(self) -> Any:
        """Return the settings of the search itself, as they are composed.

        Raises:
            ConfigError: they, or other overrides, have mistakes.
        """
        search, mistakes = self._read(self.search, sweeps=False)
        if self.mistakes or mistakes:
            raise ConfigError("\n".join([*self.mistakes, *mistakes]))
        return self._composed(search)["sweep"]

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
        command_help.print_help(self.typed, summary, self.kind, raw, self.groups, [*folders, conf_folder()])

    def _read(self, texts: Sequence[str], sweeps: bool) -> tuple[list[str], list[str]]:
        """Return overrides as they are given to Hydra, and the mistakes in them."""
        from orchestrator.configuration.overrides import Reader

        reader = Reader(self.name, self.kind, self.groups, sweeps)
        overrides, mistakes = [], []
        for text in texts:
            try:
                overrides.append(reader.rewritten(text, parsed(text)))
            except ConfigError as mistake:
                mistakes.append(str(mistake))
        return overrides, mistakes

    def _composed(self, overrides: Sequence[str]) -> Any:
        """Return the composed values as plain containers.

        Raises:
            ConfigError: Hydra cannot compose them.
        """
        try:
            with hydra_errors_in_one_line():
                return composed(self.hydra, self.primary, overrides)
        except Exception as error:  # Hydra has read nothing but the arguments, and raises whatever it comes upon
            raise ConfigError("\n".join([*self.mistakes, first_line(error)])) from error

    def combinations(self) -> "list[Config]":
        """Return the configuration of every combination of a sweep.

        Raises:
            ConfigError: with every mistake in any of them, one line each.
        """
        from orchestrator.configuration.mistakes import validated

        fixed = [text for text in self.overrides if text.startswith("hydra")]
        configs, mistakes = list["Config"](), list(self.mistakes)
        for job in jobs([text for text in self.overrides if text not in fixed]):
            raw = self._composed([*job, *fixed])
            try:
                configs.append(validated(raw, self.kind, earlier=self._misplaced_sweep(raw)))
            except ConfigError as error:
                mistakes += str(error).splitlines()
        if mistakes:
            raise ConfigError("\n".join(dict.fromkeys(mistakes)))
        return configs

    def _run_one(self, cfg: "DictConfig") -> None:
        from hydra.core.hydra_config import HydraConfig

        from orchestrator.configuration.mistakes import validated

        job = HydraConfig.get()
        print(redact(" ".join([f"[{job.job.num}]", *(text.lstrip("+") for text in job.overrides.task)])), flush=True)
        self._start(validated(plain(cfg), self.kind))

    def _start(self, config: "Config") -> None:
        from orchestrator.cluster.head_start import give_head_start

        command = COMMANDS[self.name]
        if command.makes:
            streams.go_on_unread()
        if storage := getattr(config, "storage", None):
            use_cache_folder(storage.cache_dir)
        others = [Composer(self.hydra, self.flags)] if command.composes else []
        give_head_start(config)
        importlib.import_module(f"orchestrator.commands.{self.name}").run(config, *others)


class Composer:
    """Composes and validates the configuration of any command in this process, as its own program would."""

    def __init__(self, hydra: "Hydra", flags: "Namespace") -> None:
        self._hydra, self._flags = hydra, flags

    @property
    def config_dir(self) -> str | None:
        """The user's folder of options."""
        return self._flags.config_dir

    @property
    def flags(self) -> list[str]:
        """The flags with which another program finds the same options."""
        folders = {"--config-dir": self._flags.config_dir, "--config-path": self._flags.config_path}
        return [word for name, path in folders.items() if path for word in (name, str(Path(path).resolve()))]

    def kind(self, command: str) -> "type[Config]":
        """Return the configuration class of a command.

        Raises:
            ConfigError: there is no such command.
        """
        if command not in COMMANDS:
            raise ConfigError(unknown_command(command))
        return config_class(COMMANDS[command].config)

    def compose(self, command: str, overrides: Sequence[str]) -> "Config":
        """Return the configuration of a command with overrides, as they are typed.

        Raises:
            ConfigError: with every mistake, one line each.
        """
        return self._session(command, overrides, multirun=False).validated()

    def compose_all(self, command: str, overrides: Sequence[str]) -> "list[Config]":
        """Return the configuration of every run that `--multirun` starts of these overrides.

        Raises:
            ConfigError: with every mistake in any of them, one line each.
        """
        from orchestrator.cli.trials import composed_trials

        session = self._session(command, overrides, multirun=True)
        if session.search:
            return composed_trials(command, session.search_settings(), session.flags.overrides, self)
        return session.combinations()

    def _session(self, command: str, overrides: Sequence[str], multirun: bool) -> Session:
        self.kind(command)
        if any(word.startswith("-") for word in overrides):
            raise ConfigError("flags after the command are not carried along; give fields alone, as FIELD=VALUE")
        words = {**vars(self._flags), "config_name": None, "multirun": multirun, "overrides": list(overrides)}
        return Session(self._hydra, command, argparse.Namespace(**words))


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
