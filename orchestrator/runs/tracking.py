"""The only speaker of Weights & Biases: one run, one id, on rank 0 (invariant 7)."""

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

from orchestrator.configuration.groups import TrackingConfig
from orchestrator.storage.redaction import redact, without_secrets

_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_DEFAULT_HOSTS = ("api.forge.coreweave.com", "api.wandb.ai")
"""The hosted service under its present and its former name; wandb 0.31.0 takes a key for either."""
_START_SECONDS = 20
"""How long an online start may take before the run is kept offline."""
_FINISH_SECONDS = 120
"""How long the last upload may take; what is left lies on the disk for `wandb sync`."""

_LOG = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where figures, samples and artifacts of a run are told."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Tells the values of `metrics` after `step` optimizer steps."""

    def log_samples(self, samples: Sequence[str], step: int) -> None:
        """Tells generated texts as a table."""

    def log_artifact(self, name: str, kind: str, url: str, metadata: Mapping[str, Any]) -> None:
        """Tells where an artifact lies, by reference: nothing is copied.

        Args:
            name: its name in W&B; other letters than `A-Z a-z 0-9 _ . -` become a dash.
            kind: "model" or "dataset".
            url: a local path or an fsspec URL.
            metadata: plain data, without secrets.
        """

    def finish(self, summary: Mapping[str, float], exit_code: int = 0) -> None:
        """Tells the final values and ends the run; more calls do nothing."""

    def describe(self) -> list[str]:
        """Lines that say where the data lies and how to look at it."""
        ...


class NullTracker:
    """Tells nothing, and imports nothing."""

    def log(self, *_: Any, **__: Any) -> None:
        return

    def log_samples(self, *_: Any, **__: Any) -> None:
        return

    def log_artifact(self, *_: Any, **__: Any) -> None:
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
    """Starts tracking; call it on rank 0 only, within the worker.

    Args:
        config: mode, project, entity, tags and group.
        run_name: the name to show.
        run_id: stays the same for the life of the run. Online, a restart goes on with the same W&B run. Offline,
            W&B makes another folder with the same id, and `wandb sync` puts them together.
        folder: local folder in which W&B makes its own folder `wandb`.
        config_dict: plain data; what looks like a secret is left out.
        notify: takes one line about what the user should know, such as a start that had to go offline.
    """
    mode = resolve_mode(config)
    if mode == "disabled":
        return NullTracker()
    try:
        return WandbTracker(config, mode, run_name, run_id, folder, config_dict, notify)
    except Exception as error:
        notify(f"W&B did not start ({_short(error)}); the run goes on untracked")
        _LOG.debug("W&B did not start", exc_info=True)
        return NullTracker()


def resolve_mode(config: TrackingConfig) -> Literal["online", "offline", "disabled"]:
    """What `auto` means here: WANDB_MODE where set, else online with a key that W&B would find, else offline."""
    if config.mode != "auto":
        return config.mode
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("online", "offline", "disabled"):
        return asked
    return "online" if key_place() else "offline"


def key_place() -> str | None:
    """Where W&B would find its key: the name of a variable, or `netrc`. Never the key itself."""
    return next(filter(os.environ.get, _KEYS), "netrc" if _has_netrc_key() else None)


def api_url() -> str:
    """The address of the W&B service."""
    return os.environ.get("WANDB_BASE_URL") or f"https://{_DEFAULT_HOSTS[0]}"


class WandbTracker:
    """A W&B run. Trouble with W&B is said in one line and never ends the training."""

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
        """Starts the run as `make_tracker` says, offline when an online start fails."""
        self._notify = notify
        self._folder = folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        arguments = {
            "project": config.project,
            "entity": config.entity,
            "group": config.group,
            "tags": list(config.tags),
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

    def log_artifact(self, name: str, kind: str, url: str, metadata: Mapping[str, Any]) -> None:
        def send(run: Any) -> None:
            import wandb

            artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), kind, metadata=without_secrets(dict(metadata)))
            place = redact(url) if "://" in url else Path(url).absolute().as_uri()
            artifact.add_reference(place, checksum=False)
            run.log_artifact(artifact)

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
            # W&B keeps no second value for a step: what a restart repeats was told before.
            if step >= run.step:
                run.log(dict(values()), step=step)

        # The background process may have died, or the disk be full: said once, not at every step.
        self._open = self._open and self._safely(send, "logging")

    def _safely(self, send: Callable[[Any], None], what: str) -> bool:
        """Whether `send` went well; if not, the user is told that `what` failed."""
        try:
            send(self._run)
        except Exception as error:
            self._notify(f"W&B: {what} failed ({_short(error)}); the run goes on")
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
        # The service holds the failed run's id until it ends (wandb 0.31.0: "run ID … is in use").
        wandb.teardown()
        for folder in set(self._folder.glob("run-*")) - before:
            shutil.rmtree(folder, ignore_errors=True)
        return None


def _start(arguments: dict[str, Any], mode: Literal["online", "offline"]) -> Any:
    import wandb

    quiet: dict[str, Any] = {"silent": True, "quiet": True, "console": "off"}
    # The login speaks before the run's own settings count.
    wandb.setup(settings=wandb.Settings(**quiet))
    nothing_scraped: dict[str, Any] = {
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "disable_job_creation": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "host": "",
        "program": "",
    }
    patience: dict[str, Any] = {"init_timeout": _START_SECONDS, "finish_timeout": _FINISH_SECONDS}
    return wandb.init(**arguments, settings=wandb.Settings(mode=mode, **quiet, **nothing_scraped, **patience))


def _has_netrc_key() -> bool:
    """Whether a netrc file holds a key for the W&B server, found as W&B finds it, without a network."""
    paths = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    asked = os.environ.get("WANDB_BASE_URL")
    hosts = (urlsplit(asked).netloc,) if asked else _DEFAULT_HOSTS
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
