"""The only module that uses wandb-workspaces: the layout of the page as a workspace and a report in W&B."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchestratorError, UserError
from orchestrator.report.layout import Panel
from orchestrator.runs.tracking import default_entity, key_place
from orchestrator.storage.redaction import redact, without_secrets

if TYPE_CHECKING:
    from wandb_workspaces.expr import And


def check_workspaces() -> None:
    """Check what saving needs, before anything is written.

    Raises:
        UserError: the package or the key is missing.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("wandb=true: needs the package wandb-workspaces; pip install 'gpt-orchestrator[workspaces]'")
    if key_place() is None:
        raise UserError("wandb=true: W&B finds no key; run `wandb login`, or set WANDB_API_KEY")


def save_workspace(
    title: str, entity: str | None, project: str, run_ids: Sequence[str], panels: Sequence[Panel]
) -> tuple[str, str]:
    """Save a workspace and a report with these panels, which show these runs alone; return their addresses.

    Args:
        title: Of both.
        entity: The W&B user or team; None takes the owner of the key.
        project: The W&B project.
        run_ids: The runs' ids in W&B.
        panels: Their metrics are those that W&B has for these runs.

    Raises:
        OrchestratorError: W&B refused them, or cannot be reached.
    """
    try:
        owner = entity or default_entity()
        if owner is None:
            raise UserError("tracking.entity: the owner of the W&B key has no default; name a user or a team")
        return _workspace(title, owner, project, run_ids, panels), _report(title, owner, project, run_ids, panels)
    except OrchestratorError:
        raise
    except Exception as error:  # wandb-workspaces raises whatever the server or its client comes upon
        text = redact(without_secrets(str(error) or type(error).__name__))
        raise OrchestratorError(f"W&B did not take the workspace: {text.strip().splitlines()[0][:300]}") from error


def _workspace(title: str, entity: str, project: str, run_ids: Sequence[str], panels: Sequence[Panel]) -> str:
    from wandb_workspaces import workspaces as ws

    drawn: list[Any] = [_line_plot(panel) for panel in panels]
    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=title,
        sections=[ws.Section(name="Curves", panels=drawn, is_open=True)],
        runset_settings=ws.RunsetSettings(filters=_only(run_ids)),
    )
    return str(workspace.save().url)


def _report(title: str, entity: str, project: str, run_ids: Sequence[str], panels: Sequence[Panel]) -> str:
    from wandb_workspaces.reports.v2 import interface as wr

    drawn: list[Any] = [_line_plot(panel) for panel in panels]
    runs = wr.Runset(entity=entity, project=project, filters=_only(run_ids))
    grid = wr.PanelGrid(runsets=[runs], panels=drawn)
    return str(wr.Report(entity=entity, project=project, title=title, blocks=[grid]).save().url)


def _line_plot(panel: Panel) -> Any:
    from wandb_workspaces.reports.v2 import interface as wr

    title = f"{panel.title} ({panel.unit})" if panel.unit else panel.title
    return wr.LinePlot(title=title, x="Step", y=list(panel.metrics), log_y=panel.may_be_logarithmic)


def _only(run_ids: Sequence[str]) -> "And":
    from wandb_workspaces import expr

    return expr.And(expr.Metric("ID").isin(list(run_ids)))
