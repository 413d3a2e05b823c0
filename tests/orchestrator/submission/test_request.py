"""What is asked of the cluster: composed here, named after its run, and refused where the cluster is another place."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from stand_in_jobs import StandInClient

from orchestrator.cli import main
from orchestrator.cli.flags import read_flags
from orchestrator.cli.session import Composer, hydra_of
from orchestrator.configuration.submission import SubmitConfig
from orchestrator.errors import ConfigError, UserError
from orchestrator.submission.job_server import JobServer
from orchestrator.submission.request import Request, check, requested

ROOT = "storage.root=s3://bucket/outputs"


def request(command: str, *overrides: str) -> Request:
    flags = read_flags("submit", [command])
    with hydra_of("submit", flags) as hydra:
        return requested(SubmitConfig(command=command, overrides=overrides), Composer(hydra, flags))


def refusals(command: str, *overrides: str, files: Sequence[str] = (), config_dir: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        check(request(command, *overrides), files, config_dir)
    return str(refused.value).splitlines()


def test_training_gets_the_clusters_workers_unless_the_user_chose() -> None:
    assert request("pretrain", ROOT, "run.name=x").added == ("cluster=ray", "cluster.address=auto")
    assert request("pretrain", ROOT, "run.name=x", "cluster=ray").added == ("cluster.address=auto",)
    assert request("pretrain", ROOT, "run.name=x", "cluster=local").added == ()
    assert request("pretrain", ROOT, "run.name=x", "cluster=ray", "cluster.address=ray://head:10001").added == ()
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
    training, export = request("pretrain", ROOT, "run.name=x"), request("export", ROOT, "run.name=x")
    assert (training.run, training.leased_run) == ("x", "x")
    assert export.run.startswith("export-")
    assert export.leased_run == ""


def test_signature_of_an_input_does_not_change_the_name() -> None:
    def name(signature: str) -> str:
        return request("evaluate", ROOT, f"model.path=https://host/model?X-Amz-Signature={signature}").run

    assert name("a" * 20) == name("b" * 20)


def test_job_may_save_before_it_is_killed() -> None:
    longer = request("pretrain", ROOT, "checkpoint.grace_seconds=100.5")
    assert longer.env_vars == {"RAY_JOB_STOP_WAIT_TIME_S": "131"}
    assert request("pretrain", ROOT).env_vars == {"RAY_JOB_STOP_WAIT_TIME_S": "90"}


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
    assert client.settings["x-attempt1"]["overrides"][1:] == ["run.name=x", "cluster=ray", "cluster.address=auto"]


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
    assert main(["submit", "pretrain", "--multirun", "run.seed=1,2"]) == 2
    assert "one command at a time" in capsys.readouterr().err


def test_overrides_reach_the_command_as_they_were_typed() -> None:
    typed = ['prompt=Hello, "you" & ${x} \\"', "stop=[a,b]", "model.path=s3://b/m", "temperature=0.5"]
    from orchestrator.cli.flags import read_flags
    from orchestrator.cli.session import Session, hydra_of

    flags = read_flags("submit", ["--wait", "generate", *typed, "submit.environment=image"])
    with hydra_of("submit", flags) as hydra:
        config = Session(hydra, "submit", flags).validated()
    assert isinstance(config, SubmitConfig)
    assert (config.command, list(config.overrides)) == ("generate", typed)
    assert (config.submit.wait, config.submit.environment) == (True, "image")


def test_place_that_is_deleted_with_the_job_is_refused() -> None:
    (line,) = refusals("pretrain")
    assert line.startswith("storage.root=outputs: a relative path lies in the job's own folder on the cluster")
    lines = refusals("predict", "model.path=s3://b/m", "data=files", "data.path=s3://b/x.jsonl", "output=x.jsonl")
    assert [line.partition(":")[0] for line in lines] == ["output=x.jsonl"]
    check(request("pretrain", "storage.root=/mnt/shared/outputs"), (), None)


def test_input_that_stays_here_is_refused(empty_folder: Path) -> None:
    (empty_folder / "texts").mkdir()
    for name in ("texts/a.txt", "b.txt"):
        (empty_folder / name).write_text("text")
    for path in ("texts/a.txt", "texts", "texts/*.txt", "./b.txt"):
        (line,) = refusals("pretrain", ROOT, "data=files", f"data.path={path}")
        assert line.startswith(f"data.path={path}: is not among the files that are sent")
    (line,) = refusals("pretrain", ROOT, "data.sources=[{name: a, path: s3://b/x.txt}, {name: b, path: b.txt}]")
    assert line.startswith("data.sources.1.path=b.txt: is not among the files that are sent")
    for path in ("texts/a.txt", "texts", "texts/*.txt", "s3://bucket/x.txt", "/mnt/x.txt"):
        check(request("pretrain", ROOT, "data=files", f"data.path={path}"), ["texts/a.txt"], None)


@pytest.mark.parametrize(
    "secret",
    [
        "data.path=https://host/x.txt?X-Amz-Signature=canary12345",
        "data.path=https://user:canary12345@host/x.txt",
        "data.path=s3://AKIACANARY:canary12345@bucket/x.txt",
        "data.path=hf://canary12345@datasets/x.txt",
        "tracking.tags=[canary12345]",
    ],
)
def test_secret_in_an_override_is_refused_and_not_repeated(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary12345")
    (line,) = refusals("pretrain", ROOT, "data=files", "data.path=x", secret)
    assert line.startswith(f"{secret.partition('=')[0]}: holds a password, a key or a signed URL")
    assert "canary" not in line.lower()


def test_secret_in_the_users_options_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    option = tmp_path / "experiment" / "mine.yaml"
    option.write_text("data:\n  path: https://host/x.txt?sig=canary12345\n")
    (line,) = refusals("pretrain", ROOT, config_dir=tmp_path)
    assert str(option) in line
    assert "canary" not in line
