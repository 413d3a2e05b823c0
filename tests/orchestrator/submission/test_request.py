"""What is asked of the cluster: composed here, named after its run, and refused where the cluster is another place."""

from pathlib import Path

import pytest
from requests_here import ROOT, request
from stand_in_jobs import StandInClient

from orchestrator.cli import main
from orchestrator.cli.flags import read_flags
from orchestrator.cli.session import Session, hydra_of
from orchestrator.configuration.submission import SubmitConfig
from orchestrator.errors import ConfigError, UserError
from orchestrator.runs.lease import EXPIRY_SECONDS
from orchestrator.submission.job_server import JobServer
from orchestrator.submission.package import CONFIG_DIR
from orchestrator.submission.request import settings_of


def test_training_gets_the_clusters_workers_unless_the_user_chose() -> None:
    def added(*chosen: str) -> tuple[str, ...]:
        return request("pretrain", ROOT, "run.name=x", "cluster.lease_wait_seconds=0", *chosen).added

    assert added() == ("cluster=ray", "cluster.address=auto")
    assert added("cluster=ray") == ("cluster.address=auto",)
    assert added("cluster=local") == ()
    assert added("cluster=ray", "cluster.address=ray://head:10001") == ()
    assert request("evaluate", ROOT, "model.path=s3://bucket/model").added == ()


def test_same_command_has_the_same_name_wherever_and_however_it_runs() -> None:
    name = request("pretrain", ROOT).run
    assert request("pretrain", ROOT, "cluster=ray", "cluster.num_workers=2", "strategy=ddp").run == name
    assert f"run.name={name}" in request("pretrain", ROOT).overrides
    others = [("run.seed=1",), ("data=files", "data.path=s3://b/x.txt"), ("data=files", "data.path=s3://b/y.txt")]
    names = {name, *(request("pretrain", ROOT, *other).run for other in others)}
    assert len(names) == 4
    assert request("pretrain", "storage.root=s3://other").run not in names


def test_other_command_on_a_run_is_not_taken_for_its_training() -> None:
    assert request("pretrain", ROOT, "run.name=x").run == "x"
    assert request("export", ROOT, "run.name=x").run.startswith("export-")


def test_signature_of_an_input_does_not_change_the_name() -> None:
    def name(signature: str) -> str:
        return request("evaluate", ROOT, f"model.path=https://host/model?X-Amz-Signature={signature}").run

    assert name("a" * 20) == name("b" * 20)


def test_job_may_save_before_it_is_killed() -> None:
    longer = request("pretrain", ROOT, "checkpoint.grace_seconds=100.5")
    assert longer.env_vars({}) == {"RAY_JOB_STOP_WAIT_TIME_S": "131"}
    assert request("pretrain", ROOT).env_vars({}) == {"RAY_JOB_STOP_WAIT_TIME_S": "90"}
    pipeline = request("run", "+pipeline=quickstart", ROOT)
    assert pipeline.env_vars({}) == {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
    stages = {"base: ": longer.configs[0], "page: ": request("generate", "model.path=s3://b/m").configs[0]}
    assert pipeline.env_vars(stages) == {"RAY_JOB_STOP_WAIT_TIME_S": "131"}


def test_next_attempt_waits_for_the_lease_of_a_driver_that_was_lost_with_its_machine() -> None:
    assert "cluster.lease_wait_seconds=90" in request("pretrain", ROOT, "cluster=local").added
    assert request("pretrain", ROOT).configs[0].cluster.lease_wait_seconds > EXPIRY_SECONDS  # type: ignore[attr-defined]
    for chosen in ("cluster.lease_wait_seconds=0", "cluster.lease_wait_seconds=300"):
        assert not any("lease" in text for text in request("pretrain", ROOT, chosen).added)
    assert request("evaluate", ROOT, "model.path=s3://b/m").added == ()


def test_sweep_is_one_job_whose_every_run_is_checked_here() -> None:
    grid = request("pretrain", ROOT, "checkpoint.grace_seconds=10,100", multirun=True)
    assert len(grid.configs) == 2
    assert grid.env_vars({}) == {"RAY_JOB_STOP_WAIT_TIME_S": "130"}
    assert grid.added == ("cluster=ray", "cluster.address=auto")  # each run has its own name
    search = ("sweep=random", "sweep.num_trials=2", "optimizer.learning_rate=interval(1e-4,1e-2)", "cluster=local")
    drawn = request("pretrain", ROOT, *search, multirun=True)
    assert len({config.optimizer.learning_rate for config in drawn.configs}) == 2  # type: ignore[attr-defined]
    assert drawn.run == request("pretrain", *reversed(search), ROOT, multirun=True).run
    assert request("pretrain", ROOT, *search, "sweep.name=rates", multirun=True).run == "rates"
    assert settings_of(drawn, "none", {}, False, True)["overrides"][:3] == ["--multirun", "--config-dir", CONFIG_DIR]
    with pytest.raises(ConfigError) as refused:
        request("pretrain", ROOT, "run.seed=x,y", "training.num_steps=-1", multirun=True)
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize("command", ["submit", "jobs", "logs", "stop", "chat"])
def test_command_that_needs_a_person_is_not_submitted(command: str) -> None:
    with pytest.raises(UserError, match=f"command={command}: runs here alone"):
        request(command)


@pytest.mark.parametrize(("root", "stays"), [("", "runs"), ("kept", "kept"), ("kept/deep", "kept")])
def test_storage_root_within_the_folder_stays_here(
    root: str, stays: str, empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("code.py", f"{stays}/x/model.safetensors"):
        (empty_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (empty_folder / name).write_text(name)
    client = StandInClient()
    monkeypatch.setattr("orchestrator.commands.submit.connect", lambda *_: JobServer(client))
    assert main(["submit", "pretrain", f"storage.root={empty_folder / root}", "run.name=x"]) == 0
    assert client.names["x-attempt1"] == ["_submission/entry.py", "_submission/settings.json", "code.py"]
    assert client.settings["x-attempt1"]["overrides"][1:] == [
        *("run.name=x", "cluster=ray", "cluster.address=auto", "cluster.lease_wait_seconds=90")
    ]


def test_all_mistakes_are_found_before_anything_is_sent(
    empty_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.commands.submit.connect", lambda *_: pytest.fail("it connects"))
    assert main(["submit", "pretrain", "model.nope=1", "training.num_steps=x", "--address", "http://127.0.0.1:9"]) == 2
    said = capsys.readouterr().err
    assert "2 mistakes" in said
    assert "model.nope=1: unknown" in said
    assert main(["submit", "--wait", "pretrane"]) == 2
    assert "pretrane: no such command; did you mean pretrain?" in capsys.readouterr().err
    assert main(["submit", "model=tiny", "pretrain"]) == 2
    assert "model=tiny: name the command before its settings" in capsys.readouterr().err
    assert main(["submit", "pretrain", "--multirun", "run.seed=1,x", ROOT]) == 2
    assert "run.seed=x: must be a whole number" in capsys.readouterr().err
    assert main(["submit", "run", "+pipeline=quickstart", ROOT, "pipeline.stages.base.overrides=['model.nope=1']"]) == 2
    assert "pipeline.stages.base: model.nope=1: unknown" in capsys.readouterr().err


def test_overrides_reach_the_command_as_they_were_typed() -> None:
    typed = ['prompt=Hello, "you" & ${x} \\"', "stop=[a,b]", "model.path=s3://b/m", "temperature=0.5"]
    flags = read_flags("submit", ["--wait", "generate", *typed, "submit.environment=image"])
    with hydra_of("submit", flags) as hydra:
        config = Session(hydra, "submit", flags).validated()
    assert isinstance(config, SubmitConfig)
    assert (config.command, list(config.overrides)) == ("generate", typed)
    assert (config.submit.wait, config.submit.environment) == (True, "image")
