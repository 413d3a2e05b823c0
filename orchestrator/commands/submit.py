"""`orchestrator submit`: a command runs on a Ray cluster, whether or not this machine stays on."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from modules.config import Config
from orchestrator.configuration.composer import Composer
from orchestrator.configuration.pipeline import RunPipelineConfig
from orchestrator.configuration.submission import SubmitConfig
from orchestrator.display.terminal import print_line
from orchestrator.display.units import size
from orchestrator.doctor.packages import PROJECT, TESTED, allowed_ranges, installed_version
from orchestrator.pipeline.graph import checked_stages
from orchestrator.runs.tracking import key_place
from orchestrator.storage.redaction import redact
from orchestrator.submission.attempts import start_or_find
from orchestrator.submission.checks import check
from orchestrator.submission.job_server import Labels, connect
from orchestrator.submission.lock_file import locked_packages, locked_versions
from orchestrator.submission.package import ENTRY, Options, Project, read_options, read_project, write_package
from orchestrator.submission.report import follow, show_started
from orchestrator.submission.request import Request, requested, settings_of

_INSTALL_SECONDS = 3600
"""Until Ray gives up an environment; its ten minutes are too short for torch and its libraries."""
_IN_A_ROOT = ("runs", "stages", "data", "explanations")


def run(config: SubmitConfig, composer: Composer) -> None:
    """Send the command to the cluster, or find the job that already runs it; with `submit.wait` follow it to its end.

    Raises:
        SystemExit: with the job's exit code, if it is followed and that is not 0.
    """
    request, folder = requested(config, composer), Path.cwd()
    stages = _stages(request, composer)
    options = read_options(Path(composer.config_dir)) if composer.config_dir else None
    project = _project(config, request, folder)
    notes = check(request, stages, project, options)
    packages = locked_packages(folder) if config.submit.environment == "lock" else []
    runtime_env = {"env_vars": request.env_vars(stages), **_environment(packages)}
    allow_insecure = config.submit.allow_insecure or _allows_insecure(request)
    server = connect("submit.address", config.submit.address, allow_insecure)
    for line in [*_notes(request, project, options), *(f"note: {line}" for line in notes)]:
        print_line(line)
    with tempfile.TemporaryDirectory(prefix="orchestrator-submit-") as place:
        package = Path(place) / "package.zip"
        write_package(package, project, _settings(config, request, packages, options), options)

        def start(job_id: str) -> None:
            labels = Labels(request.run, request.root, request.command)
            server.submit(job_id, labels, f"exec python {ENTRY}", package, runtime_env)

        started = start_or_find(server, request.run, request.root, start)
    show_started(started, request.run, server.address)
    if config.submit.wait:
        follow(server, started.id)


def _stages(request: Request, composer: Composer) -> dict[str, Config]:
    """Return the configurations of a pipeline's stages, all of them checked here, by what names them in messages."""
    pipelines = [config for config in request.configs if isinstance(config, RunPipelineConfig)]
    return {
        f"pipeline.stages.{name}: ": stage.config
        for pipeline in pipelines
        for name, stage in checked_stages(pipeline, composer).items()
    }


def _project(config: SubmitConfig, request: Request, folder: Path) -> Project | None:
    """Return the files to send; with an image only settings travel."""
    if config.submit.environment == "image":
        return None
    return read_project(folder, config.submit.max_bytes, _made_in(folder, Path(request.root)))


def _made_in(folder: Path, root: Path) -> tuple[str, ...]:
    """Return what a storage root within the folder holds there, which is not the project's."""
    if not root.is_absolute() or not root.is_relative_to(folder):
        return ()
    return root.relative_to(folder).parts[:1] or _IN_A_ROOT


def _environment(packages: list[str]) -> dict[str, Any]:
    return {"pip": packages, "config": {"setup_timeout_seconds": _INSTALL_SECONDS}} if packages else {}


def _settings(config: SubmitConfig, request: Request, packages: list[str], options: Options | None) -> dict[str, Any]:
    versions = {
        "tested": TESTED,
        "allowed": {name: str(ranges) for name, ranges in allowed_ranges().items()},
        "locked": locked_versions(packages),
        "python": ".".join(map(str, sys.version_info[:2])),
        "version": installed_version(PROJECT),
    }
    tracking = getattr(request.configs[0], "tracking", None)
    has_key = tracking is not None and tracking.mode in ("auto", "online") and key_place() is not None
    return settings_of(request, config.submit.environment, versions, has_key, options is not None)


def _allows_insecure(request: Request) -> bool:
    cluster = getattr(request.configs[0], "cluster", None)
    return bool(cluster and cluster.allow_insecure)


def _notes(request: Request, project: Project | None, options: Options | None) -> list[str]:
    lines = [f"on the cluster: {redact(' '.join(request.added))}"] if request.added else []
    if project is not None:
        files = f"{len(project.files)} file{'s' if len(project.files) != 1 else ''}"
        lines.append(f"sends {files} of {project.folder}, {size(project.num_bytes)}")
    held_back = [*(project.held_back if project else ()), *(options.held_back if options else ())]
    if held_back:
        lines.append(f"not sent, since they may hold secrets: {', '.join(held_back)}")
    return lines
