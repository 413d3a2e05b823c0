"""The layout of the page in W&B, saved to a stand-in for its server on loopback."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb_server import WandbServer, wandb_server

from orchestrator.cli import main
from orchestrator.report import workspace
from orchestrator.runs.history import History
from orchestrator.storage.store import Storage

# wandb-workspaces 0.4.13 defines its classes in the old way
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")
KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    with wandb_server() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path))
    for name in ("a", "b"):
        folder = f"runs/{name}"
        for file, content in {
            "recipe.json": {"command": "pretrain"},
            "run.json": {"wandb_run_id": f"id-of-{name}"},
        }.items():
            storage.write_bytes(f"{folder}/{file}", json.dumps(content).encode())
        with History(storage, folder) as history:
            figures = {"train/loss": 2.0, "train/loss_clm": 2.0, "optimizer/grad_norm": 1.0, "progress/tokens": 8.0}
            history.record({"kind": "step", "step": 1, "metrics": figures})
            history.record({"kind": "validation", "step": 1, "metrics": {"translation/bleu": 12.0}})
    return storage


def found_in(value: Any, key: str) -> list[Any]:
    """Return the values of a key at any depth."""
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in ([item] if name == key else found_in(item, key))]
    return [found for item in value for found in found_in(item, key)] if isinstance(value, list) else []


@pytest.mark.slow
def test_workspace_and_report_have_the_plots_of_the_page_and_its_runs_alone(
    server: WandbServer, root: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", "runs=[a,b]", "wandb=true", "title=Ours", f"storage.root={root.url()}"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert [(view["type"], view["entityName"], view["projectName"]) for view in server.views] == [
        ("project-view", "me", "gpt-orchestrator"),
        ("runs", "me", "gpt-orchestrator"),
    ]
    for view in server.views:
        assert view["displayName"] == "Ours"
        drawn = found_in(view["spec"], "metrics")
        assert [names for names in drawn if names] == [
            ["train/loss"],
            ["train/loss_clm"],
            ["optimizer/grad_norm"],
            ["translation/bleu"],
        ]
        assert ["id-of-a", "id-of-b"] in found_in(view["spec"], "value")
    assert "W&B: Next-token loss is without val/loss_clm, which no run has" in said
    assert "W&B: Learning rate is without optimizer/lr, which no run has" in said
    assert f"W&B workspace: {server.url}/me/gpt-orchestrator" in said
    assert f"W&B report: {server.url}/me/gpt-orchestrator/reports/Ours--Vmlldzox" in said
    assert (root.local_path() / "reports").is_dir()  # type: ignore[operator]


@pytest.mark.slow
def test_refusal_of_the_server_is_said_in_one_line_after_the_page(
    server: WandbServer, root: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    server.refusal = f"permission denied for {KEY}"
    assert main(["report", "runs=a", "wandb=true", "tracking.entity=me", f"storage.root={root.url()}"]) == 1
    streams = capsys.readouterr()
    assert "report: " in streams.out
    assert "W&B did not take the workspace: " in streams.err
    assert "permission denied" in streams.err
    assert "Traceback" not in streams.err
    assert KEY not in streams.err


def test_without_a_key_or_the_package_nothing_is_written(
    root: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["report", "runs=a", "wandb=true", f"storage.root={root.url()}"]
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert main(words) == 2
    assert "wandb=true: W&B finds no key; run `wandb login`, or set WANDB_API_KEY" in capsys.readouterr().err
    monkeypatch.setattr(workspace.importlib.util, "find_spec", lambda name: None)
    assert main(words) == 2
    assert "needs the package wandb-workspaces; pip install 'gpt-orchestrator[workspaces]'" in capsys.readouterr().err
    assert not root.exists("reports")


def test_runs_without_a_history_get_no_workspace(
    server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Storage(str(tmp_path)).write_bytes("runs/old/recipe.json", b"{}")
    assert main(["report", "runs=old", "wandb=true", f"storage.root={tmp_path}"]) == 2
    assert "none of these runs has kept a history of its figures" in capsys.readouterr().err
    assert server.views == []
    assert not (tmp_path / "reports").exists()
