"""The only module that uses Weights & Biases: one run, one id, on rank 0 (invariant 7)."""

import logging
import netrc
import os
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from pydantic import ValidationError

from orchestrator.configuration.groups import TrackingConfig
from orchestrator.errors import ConfigError
from orchestrator.storage.redaction import redact, without_secrets

_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_DEFAULT_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
"""The hosted service under its present and its former name; wandb 0.31.0 accepts a key for either."""
_START_SECONDS = 20
"""How long an online start may take before the run is tracked offline."""
_FINISH_SECONDS = 120
"""How long the last upload may take; the rest stays on the disk for `wandb sync`."""

_LOG = logging.getLogger(__name__)


class Tracker(Protocol):
    """Receives the metrics, samples and artifacts of a run."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the values of `metrics` after `step` optimizer steps."""

    def log_samples(self, samples: Sequence[str], step: int) -> None:
        """Log generated texts as a table."""

    def log_confusion(self, name: str, labels: Sequence[str], confusion: Sequence[Sequence[float]]) -> None:
        """Log how examples were classified as W&B's own plot of a confusion matrix.

        Args:
            name: The plot's name, as of a metric.
            labels: Names of the classes.
            confusion: For each class, how many of its examples were taken for each class.
        """

    def link(
        self, name: str, kind: Literal["dataset", "model"], url: str, version: str, metadata: Mapping[str, Any]
    ) -> None:
        """Link an artifact to the run in W&B's lineage by reference: nothing is read or copied.

        Args:
            name: Its name in W&B; characters other than `A-Z a-z 0-9 _ . -` become a dash.
            kind: A data set is an input of the run, a model its output.
            url: A local path or an fsspec URL.
            version: Digest of its content: with another one it is another version in W&B.
            metadata: Plain data; what looks like a secret is left out.
        """

    def finish(self, summary: Mapping[str, float], exit_code: int = 0) -> None:
        """Log the final values and end the run; later calls do nothing."""

    def describe(self) -> list[str]:
        """Return lines that say where the data is and how to look at it."""
        ...


class NullTracker:
    """Logs nothing, and imports nothing."""

    def log(self, *_: Any, **__: Any) -> None:
        return

    def log_samples(self, *_: Any, **__: Any) -> None:
        return

    def log_confusion(self, *_: Any, **__: Any) -> None:
        return

    def link(self, *_: Any, **__: Any) -> None:
        return

    def finish(self, *_: Any, **__: Any) -> None:
        return

    def describe(self) -> list[str]:
        return []


def make_tracker(
    config: TrackingConfig,
    run_name: str,
    run_id: str,
    folder: Path,
    config_dict: Mapping[str, Any],
    notify: Callable[[str], None] = print,
) -> Tracker:
    """Start tracking; call this on rank 0 only, within the worker.

    Args:
        config: Mode, project, entity, tags and group.
        run_name: The name to show.
        run_id: Stays the same for the life of the run. Online, a restart continues the same W&B run. Offline,
            W&B makes another folder with the same id, and `wandb sync` merges them.
        folder: Local folder in which W&B makes its own folder `wandb`.
        config_dict: Plain data; what looks like a secret is left out.
        notify: Receives one line that the user should see, such as that tracking had to start offline.
    """
    mode = resolve_mode(config)
    if mode == "disabled":
        return NullTracker()
    try:
        return WandbTracker(config, mode, run_name, run_id, folder, config_dict, notify)
    except Exception as error:
        notify(f"W&B did not start ({_short(error)}); the run continues untracked")
        _LOG.debug("W&B did not start", exc_info=True)
        return NullTracker()


def resolve_mode(config: TrackingConfig) -> Literal["online", "offline", "disabled"]:
    """Return the mode; `auto` means WANDB_MODE if set, else online if W&B would find a key, else offline."""
    if config.mode != "auto":
        return config.mode
    wandb_mode = os.environ.get("WANDB_MODE", "").lower()
    if wandb_mode in ("online", "offline", "disabled"):
        return wandb_mode
    return "online" if key_place() else "offline"


def check_environment(config: TrackingConfig) -> None:
    """Check the variables that W&B would take its settings from, before the run rather than in it.

    Raises:
        ConfigError: W&B refuses some of them, and the run would be untracked.
    """
    names = sorted(name for name in os.environ if name.startswith("WANDB_") and name not in _KEYS)
    if not names or resolve_mode(config) == "disabled":
        return
    import wandb

    refused = []
    for name in names:
        try:
            wandb.Settings().update_from_env_vars({name: os.environ[name]})
        except Exception as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else _short(error)
            refused.append(f"{name} in the environment: {reason}; correct or unset it")
    if refused:
        raise ConfigError("\n".join(refused))


def key_place() -> str | None:
    """Return where W&B would find its key: the name of a variable, or `netrc`. Never the key itself."""
    return next(filter(os.environ.get, _KEYS), "netrc" if _has_netrc_key() else None)


def lacks_key(config: TrackingConfig) -> bool:
    """Return whether a run would be tracked online if there were a key here."""
    wanted = config.mode if config.mode != "auto" else os.environ.get("WANDB_MODE", "").lower() or "online"
    return wanted == "online" and key_place() is None


def default_entity() -> str | None:
    """Return the user or the team to which W&B counts what the owner of the key does, by asking it."""
    import wandb

    return wandb.Api().default_entity


def api_url() -> str:
    """Return the address of the W&B service."""
    return os.environ.get("WANDB_BASE_URL") or f"https://{_DEFAULT_HOSTS[0]}"


class WandbTracker:
    """A W&B run. A failure of W&B is reported in one line and never ends the training."""

    def __init__(
        self,
        config: TrackingConfig,
        mode: Literal["online", "offline"],
        run_name: str,
        run_id: str,
        folder: Path,
        config_dict: Mapping[str, Any],
        notify: Callable[[str], None],
    ) -> None:
        """Start the run as `make_tracker` describes, offline if an online start fails."""
        self._notify = notify
        self._folder = folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        arguments = {
            "project": config.project,
            "entity": config.entity,
            "group": config.group and redact(config.group),
            "tags": [redact(tag) for tag in config.tags],
            "id": run_id,
            "name": run_name,
            "dir": str(folder),
            "config": without_secrets(dict(config_dict)),
        }
        self._run: Any = None
        if mode == "online":
            self._run = self._start_online(arguments)
        if self._run is None:
            self._run = _start(arguments, "offline")
        self._open = True
        self._offline = bool(self._run.offline)
        self._url = self._run.url

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._log_values(lambda: {name: float(value) for name, value in metrics.items()}, step)

    def log_samples(self, samples: Sequence[str], step: int) -> None:
        def table() -> dict[str, Any]:
            import wandb

            rows: list[Any] = [[step, number, text] for number, text in enumerate(samples)]
            return {"samples": wandb.Table(columns=["step", "number", "text"], data=rows)}

        self._log_values(table, step)

    def log_confusion(self, name: str, labels: Sequence[str], confusion: Sequence[Sequence[float]]) -> None:
        def send(run: Any) -> None:
            import wandb

            # what `wandb.plot.confusion_matrix` makes, which wants every single example instead of the counts
            fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
            rows: list[Any] = [
                [label, predicted, count]
                for label, counts in zip(labels, confusion, strict=True)
                for predicted, count in zip(labels, counts, strict=True)
            ]
            table = wandb.Table(columns=list(fields), data=rows)
            run.log({name: wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": name})})

        if self._open:
            self._safely(send, f"logging {name}")

    def link(
        self, name: str, kind: Literal["dataset", "model"], url: str, version: str, metadata: Mapping[str, Any]
    ) -> None:
        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), kind, metadata=without_secrets(dict(metadata)))
            reference = redact(url) if "://" in url else Path(url).absolute().as_uri()
            # W&B tells versions apart by the names in them; with checksums it would read every file
            artifact.add_reference(reference, name=version, checksum=False)
            if kind == "model":
                run.log_artifact(artifact)
            else:
                # what `use_artifact` does with a new artifact (wandb 0.31.0); itself it refuses to do so offline, and
                # online it waits for the server without a limit
                run._log_artifact(artifact, is_user_created=True, use_after_commit=True)

        if self._open:
            self._safely(send, f"linking {name}")

    def finish(self, summary: Mapping[str, float], exit_code: int = 0) -> None:
        def send(run: Any) -> None:
            import wandb

            run.summary.update(dict(summary))
            run.finish(exit_code=exit_code)
            # Offline, wandb 0.31.0 returns from `finish` about 0.1 s before the file is written; this waits for it.
            wandb.teardown()

        if self._run is not None:
            self._safely(send, "finishing")
        self._run, self._open = None, False

    def describe(self) -> list[str]:
        folder = shlex.quote(str(self._folder))
        look = f"  look at it:  wandb leet {folder}"
        if self._offline:
            return [f"W&B data (offline): {folder}", look, f"  upload it:   wandb sync {folder}"]
        return [f"W&B run: {self._url}", look]

    def _log_values(self, values: Callable[[], Mapping[str, Any]], step: int) -> None:
        def send(run: Any) -> None:
            # W&B keeps no second value for a step; the steps that a restart repeats were logged before.
            if step >= run.step:
                run.log(dict(values()), step=step)

        # W&B's process may have died, or the disk may be full: this is reported once, not at every step.
        self._open = self._open and self._safely(send, "logging")

    def _safely(self, send: Callable[[Any], None], what: str) -> bool:
        """Return whether `send` succeeded; if not, notify the user that `what` failed."""
        try:
            send(self._run)
        except Exception as error:
            self._notify(f"W&B: {what} failed ({_short(error)}); the run continues")
            _LOG.debug("W&B: %s failed", what, exc_info=True)
            return False
        return True

    def _start_online(self, arguments: dict[str, Any]) -> Any:
        import wandb

        before = set(self._folder.glob("run-*"))
        try:
            return _start({**arguments, "resume": "allow"}, "online")
        except Exception as error:
            self._notify(f"W&B cannot be reached ({_short(error)}); this run is tracked offline")
        # W&B's service process reserves the failed run's id until it ends (wandb 0.31.0: "run ID … is in use").
        wandb.teardown()
        for folder in set(self._folder.glob("run-*")) - before:
            shutil.rmtree(folder, ignore_errors=True)
        return None


def _start(arguments: dict[str, Any], mode: Literal["online", "offline"]) -> Any:
    import wandb

    quiet: dict[str, Any] = {"silent": True, "quiet": True, "console": "off"}
    # The login prints before the run's own settings take effect.
    wandb.setup(settings=wandb.Settings(**quiet))
    collect_nothing: dict[str, Any] = {
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "disable_job_creation": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "host": "",
        "program": "",
    }
    timeouts: dict[str, Any] = {"init_timeout": _START_SECONDS, "finish_timeout": _FINISH_SECONDS}
    return wandb.init(**arguments, settings=wandb.Settings(mode=mode, **quiet, **collect_nothing, **timeouts))


def _has_netrc_key() -> bool:
    """Return whether a netrc file holds a key for the W&B server, found as W&B finds it, without a network."""
    paths = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    base_url = os.environ.get("WANDB_BASE_URL")
    hosts = (urlsplit(base_url).netloc,) if base_url else _DEFAULT_HOSTS
    for path in (Path(path).expanduser() for path in paths):
        try:
            return any(map(netrc.netrc(path).authenticators, hosts))
        except FileNotFoundError:
            continue
        except (OSError, netrc.NetrcParseError):
            return False
    return False


def _short(error: Exception) -> str:
    return redact(without_secrets(str(error)).strip().splitlines()[0][:160]) if str(error) else type(error).__name__
