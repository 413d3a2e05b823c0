import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from offline_wandb import artifact_records, config_of, history_of, read_records, summary_of

from orchestrator.configuration.groups import TrackingConfig
from orchestrator.errors import ConfigError
from orchestrator.runs.tracking import NullTracker, check_environment, lacks_key, make_tracker, resolve_mode
from orchestrator.storage.redaction import is_secret_name, without_secrets

SECRET = "0123456789abcdef0123456789abcdef01234567"
OFFLINE = TrackingConfig(mode="offline", tags=("a", "https://h/x?sig=SIGNED"), group="https://h/y?sig=SIGNED")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def fresh_wandb() -> Iterator[None]:
    """Reset W&B before and after the test: it reads the environment only once per process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


def test_mode_is_offline_without_a_key_and_online_with_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert resolve_mode(TrackingConfig()) == "offline"
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {SECRET}\n")
    assert resolve_mode(TrackingConfig()) == "online"
    (tmp_path / "netrc").write_text(f"machine api.forge.coreweave.com\n  login user\n  password {SECRET}\n")
    assert resolve_mode(TrackingConfig()) == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert resolve_mode(TrackingConfig()) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert resolve_mode(TrackingConfig()) == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve_mode(TrackingConfig()) == "offline"
    assert resolve_mode(TrackingConfig(mode="disabled")) == "disabled"


def test_disabled_tracking_never_imports_wandb() -> None:
    code = (
        "import sys, pathlib; from orchestrator.runs.tracking import make_tracker; "
        "from orchestrator.configuration.commands import TrackingConfig; "
        "tracker = make_tracker(TrackingConfig(mode='disabled'), 'n', 'i', pathlib.Path('.'), {}); "
        "tracker.log({'a': 1}, 1); tracker.finish({}); print('wandb' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_null_tracker_takes_every_call(tmp_path: Path) -> None:
    tracker = make_tracker(TrackingConfig(mode="disabled"), "name", "id", tmp_path, {})
    assert isinstance(tracker, NullTracker)
    tracker.log_samples(["text"], 1)
    tracker.link("model", "model", "/x", "d1", {})
    assert tracker.describe() == []
    assert list(tmp_path.iterdir()) == []


def test_offline_run_holds_all_that_was_logged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    tracker = make_tracker(OFFLINE, "my run", "id1", tmp_path, {"model": {"num_layers": 4}}, said.append)
    for step in (10, 20):
        tracker.log({"train/loss": 1 / step, "optimizer/lr": 0.5}, step)
    tracker.log_samples(["Once upon", "a time"], 20)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    tracker.link("data", "dataset", "s3://bucket/data", "d1", {"num_files": 3})
    tracker.link("my model!", "model", str(tmp_path / "model"), "d2", {"step": 20})
    tracker.finish({"val/bits_per_byte": 1.25})
    tracker.log({"train/loss": 0.0}, 30)
    assert said == []

    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    records = read_records(file)
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.run_id, run.display_name, run.run_group) == ("id1", "my run", "https://h/y?***")
    assert list(run.tags) == ["a", "https://h/x?***"]
    assert b"SIGNED" not in file.read_bytes()
    assert {"model": {"num_layers": 4}}.items() <= config_of(run).items()
    history = history_of(records)
    assert [(row["_step"], row["train/loss"]) for row in history] == [(10, 0.1), (20, 0.05)]
    assert history[1]["samples/nrows"] == 2
    assert summary_of(records)["val/bits_per_byte"] == 1.25
    artifacts = {record.artifact.name: record.artifact for record in artifact_records(records)}
    assert [(entry.path, entry.ref) for entry in artifacts["data"].manifest.contents] == [("d1", "s3://bucket/data")]
    (entry,) = artifacts["my-model-"].manifest.contents
    assert (entry.path, entry.ref) == ("d2/config.json", (tmp_path / "model" / "config.json").as_uri())
    assert json.loads(artifacts["data"].metadata) == {"num_files": 3}
    assert json.loads(artifacts["my-model-"].metadata) == {"step": 20}
    made_by_the_run = {name: not artifact.user_created for name, artifact in artifacts.items()}
    used_by_the_run = {name: artifact.use_after_commit for name, artifact in artifacts.items()}
    assert (made_by_the_run["my-model-"], used_by_the_run["my-model-"]) == (True, False)
    assert (made_by_the_run["data"], used_by_the_run["data"]) == (False, True)
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/*.json")
    assert json.loads(table.read_text())["data"] == [[20, 0, "Once upon"], [20, 1, "a time"]]
    assert tracker.describe()[1:] == [
        f"  look at it:  wandb leet {tmp_path}/wandb",
        f"  upload it:   wandb sync {tmp_path}/wandb",
    ]
    assert said == []
    assert capfd.readouterr() == ("", "")


def test_restarts_keep_the_run_id_and_repeat_no_step(tmp_path: Path) -> None:
    for first in (1, 3):
        tracker = make_tracker(OFFLINE, "name", "same-id", tmp_path, {})
        for step in (first, first + 1, first):
            tracker.log({"train/loss": step}, step)
        tracker.finish({})
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-same-id.wandb"))
    assert len(files) == 2
    steps = []
    for file in files:
        records = read_records(file)
        assert {record.run.run_id for record in records if record.HasField("run")} == {"same-id"}
        steps.append([row["_step"] for row in history_of(records)])
    assert sorted(steps) == [[1, 2], [3, 4]]


def test_described_commands_find_the_run(tmp_path: Path) -> None:
    tracker = make_tracker(OFFLINE, "name", "id2", tmp_path, {})
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish({})
    wandb = str(Path(sys.executable).parent / "wandb")
    for command in (["leet", "inspect", "--summary"], ["sync", "--dry-run"]):
        run = subprocess.run([wandb, *command, f"{tmp_path}/wandb"], capture_output=True, text=True, check=True)
        assert "id2" in run.stdout + run.stderr


def test_no_secret_reaches_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", "hf_planted_in_environment")
    config = {
        "storage": {"root": "s3://AKIA:planted_in_url@bucket"},
        "api_key": "planted_in_key",
        "deepspeed": {"nested": [{"password": "planted_in_list"}], "note": "hf_planted_in_environment"},
        "data": {"path": ["https://host/x?X-Amz-Signature=planted_in_query"]},
        "tokenizer": {"vocab_size": 8192},
    }
    tracker = make_tracker(OFFLINE, "name", "id3", tmp_path, config)
    tracker.link("model", "model", "s3://AKIA:planted_in_url@bucket/model", "d1", {"token": "planted_in_metadata"})
    tracker.link("data", "dataset", "https://host/data?X-Amz-Signature=planted_in_signed_url", "d2", {})
    tracker.finish({})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files)
    assert b"planted" not in content
    assert SECRET.encode() not in content
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    run = next(record.run for record in read_records(file) if record.HasField("run"))
    assert config_of(run)["tokenizer"] == {"vocab_size": 8192}


def test_unreachable_server_is_reported_once_and_the_run_tracked_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], fresh_wandb: None
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr("orchestrator.runs.tracking._START_SECONDS", 1)
    said: list[str] = []
    tracker = make_tracker(TrackingConfig(), "name", "id4", tmp_path, {}, said.append)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish({})
    assert len(said) == 1
    assert said[0].startswith("W&B cannot be reached (")
    assert said[0].endswith("this run is tracked offline")
    assert len(said[0]) < 250
    assert [path.name[:12] for path in tmp_path.glob("wandb/*run-2*")] == ["offline-run-"]
    assert len(history_of(read_records(next(tmp_path.glob("wandb/offline-run-*/*.wandb"))))) == 1
    assert capfd.readouterr() == ("", "")


def test_failure_of_wandb_is_reported_once_and_does_not_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError("service is gone")

    said: list[str] = []
    tracker = make_tracker(OFFLINE, "name", "id5", tmp_path, {}, said.append)
    with monkeypatch.context() as patched:
        patched.setattr(wandb.Run, "log", broken)
        tracker.log({"train/loss": 1.0}, 1)
        tracker.log({"train/loss": 1.0}, 2)
    assert said == ["W&B: logging failed (service is gone); the run continues"]
    tracker.finish({})


def test_tracking_that_cannot_start_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    tracker = make_tracker(OFFLINE, "name", "id7", tmp_path / "file" / "run", {}, said.append)
    tracker.log({"train/loss": 1.0}, step=1)
    assert len(said) == 1
    assert said[0].startswith("W&B did not start (")


def test_artifact_that_cannot_be_linked_stops_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = make_tracker(OFFLINE, "name", "id6", tmp_path, {}, said.append)
    tracker.link("model", "model", str(tmp_path / "missing"), "d1", {})
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish({})
    assert len(said) == 1
    assert said[0].startswith("W&B: linking model failed (")
    assert len(history_of(read_records(next(tmp_path.glob("wandb/offline-run-*/*.wandb"))))) == 1


def test_other_content_at_the_same_place_is_another_version(tmp_path: Path) -> None:
    """W&B would make no new version of a model that a run with more steps has replaced: the files' names are equal."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    tracker = make_tracker(OFFLINE, "name", "id8", tmp_path, {})
    for version in ("d1", "d2", "d2"):
        tracker.link("model", "model", str(tmp_path / "model"), version, {})
    tracker.finish({})
    records = read_records(next(tmp_path.glob("wandb/offline-run-*/*.wandb")))
    first, second, third = (record.artifact.digest for record in artifact_records(records))
    assert first != second == third


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "password", "aws_secret_access_key", "HF_TOKEN", "apikey", "x.token"]
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["tokenizer", "num_tokens", "max_new_tokens", "keyboard", "monkey", "train/tokens"])
def test_names_that_only_sound_like_secrets_are_kept(name: str) -> None:
    assert not is_secret_name(name)


def test_plain_values_pass_unchanged() -> None:
    config = {"a": [1, 2.5, None, True, "text"], "b": {"path": "/x/y"}}
    assert without_secrets(config) == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_TAGS", "t" * 70),
        ("WANDB_TAGS", "a,,b"),
        ("WANDB_PROJECT", "a/b"),
        ("WANDB_MODE", "x"),
        ("WANDB_RUN_ID", "/"),
    ],
)
def test_variable_that_wandb_refuses_is_found_before_the_run(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_environment(TrackingConfig())
    monkeypatch.setenv(name, value)
    check_environment(TrackingConfig(mode="disabled"))
    with pytest.raises(ConfigError, match=f"^{name} in the environment: .*; correct or unset it$"):
        check_environment(TrackingConfig())


@pytest.mark.parametrize(
    ("mode", "variables", "lacks"),
    [
        ("auto", {}, True),
        ("online", {}, True),
        ("auto", {"WANDB_API_KEY": "k" * 40}, False),
        ("auto", {"WANDB_MODE": "offline"}, False),
        ("offline", {}, False),
        ("disabled", {}, False),
    ],
)
def test_worker_that_would_track_online_if_it_had_a_key_lacks_one(
    mode: Any, variables: dict[str, str], lacks: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert lacks_key(TrackingConfig(mode=mode)) is lacks
