"""`orchestrator report`: one page about runs, or about the stages of a pipeline."""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from orchestrator.artifacts.own_folder import own_folder, put
from orchestrator.artifacts.staging import staging_folder
from orchestrator.configuration.report import ReportConfig
from orchestrator.display.terminal import print_line
from orchestrator.errors import UserError
from orchestrator.report.layout import missing, panels
from orchestrator.report.page import report_page
from orchestrator.report.sources import Sources, read_sources
from orchestrator.report.workspace import check_workspaces, save_workspace
from orchestrator.storage.input_files import find_files
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage

_KIND = "report"
_PAGE = "index.html"


def run(config: ReportConfig) -> None:
    """Read what runs and stages have left, and write the page."""
    if not config.runs and not config.stages:
        raise UserError("nothing to report on: name runs=[NAME] or stages=[FOLDER]; `orchestrator runs` lists all")
    asked = json.dumps([config.runs, config.stages])
    name = f"reports/{(config.runs or ('stages',))[0].replace('/', '-')}-{sha256(asked.encode()).hexdigest()[:8]}"
    if config.wandb:
        check_workspaces()
    target, name = own_folder(config.storage.root, config.to, name, _KIND)
    storage = Storage(config.storage.root)
    sources = read_sources(storage, config.runs, config.stages, read_graph(config.graph))
    if config.wandb and not any(run.history for run in sources.runs):
        raise UserError("wandb=true: none of these runs has kept a history of its figures; leave it away")
    title = config.title or _title(sources)
    page = report_page(title, storage.url(), sources)
    with staging_folder(target, name) as folder:
        (folder / _PAGE).write_text(page, encoding="utf-8")
        put(target, folder, name, _KIND)
    print_line(f"report: {target.url(f'{name}/{_PAGE}' if name else _PAGE)}")
    if config.wandb:
        _save_in_wandb(config, title, sources)


def _save_in_wandb(config: ReportConfig, title: str, sources: Sources) -> None:
    """Save the same plots in W&B, without those whose figures no run has."""
    found = {name for run in sources.runs for name in run.curves}
    for panel, names in missing(found):
        print_line(f"W&B: {panel} is without {', '.join(names)}, which no run has")
    ids = [run.state.run.wandb_run_id for run in sources.runs]
    tracking = config.tracking
    workspace, report = save_workspace(title, tracking.entity, tracking.project, ids, panels(found))
    print_line(f"W&B workspace: {workspace}")
    print_line(f"W&B report: {report}")


def _title(sources: Sources) -> str:
    labels = [run.label for run in sources.runs]
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "") or "Evaluations"


def read_graph(path: str | None) -> Mapping[str, Any]:
    """Return the stages in the file of a graph.

    Raises:
        UserError: there is no such file, or it holds no graph.
    """
    if path is None:
        return {}
    with find_files([path])[0].open() as file:
        try:
            stages = json.loads(file.read())["stages"]
            if all(isinstance(stage, dict) for stage in stages.values()):
                return stages
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
    raise UserError(f'graph={redact(path)}: is no graph; it must hold {{"stages": {{NAME: {{"command": …}}}}}} as JSON')
