"""What a run leaves behind holds no secret of its environment, and nothing that is read is a pickle."""

import os
import pickle
from pathlib import Path

import psutil
import pytest
from broken_run import TERMINATE, BrokenRun
from tiny_run import arguments, go_back, write_text

from orchestrator.cli import main

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "canary-aws-0123456789abcdef",
    "SOME_SERVICE_TOKEN": "canary-token-0123456789abcdef",
    "DATABASE_PASSWORD": "canary-password-0123456789",
    "CLIENT_SECRET": "canary-secret-0123456789",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


def test_no_secret_is_in_a_file_a_message_or_a_process_title(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    tracked = ["tracking.mode=offline", "tracking.tags=[canary-token-0123456789abcdef]", "training.num_steps=100000"]
    where = ["strategy=ddp", "cluster.num_workers=2", "run.name=tiny"]
    with BrokenRun(arguments(text, tmp_path / "outputs", *tracked, *where)) as run:
        run.wait_for_step(12)
        processes = [psutil.Process(run.process.pid), *run.workers()]
        titles = " ".join(" ".join(process.cmdline()[3:]) for process in processes[1:])
        run.process.send_signal(TERMINATE)
        assert run.end() == 143, run.said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    # the tag is the user's own word, which W&B is given and the configuration keeps; all else comes from nowhere
    own = {path for path in files if path.name == "config.yaml" or path.suffix == ".wandb"}
    for value in SECRETS.values():
        found = [path for path in files if value.encode() in path.read_bytes()]
        assert set(found) <= (own if value == SECRETS["SOME_SERVICE_TOKEN"] else set())
        assert value not in run.said + titles


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mknod, (str(self.path),)


def test_no_pickle_is_read_wherever_one_lies(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, trace = tmp_path / "outputs", tmp_path / "was-unpickled"
    same = arguments(text, root, "run.name=tiny", "tracking.mode=disabled")
    assert main(same) == 0
    run = root / "runs/tiny"
    go_back(run, 10)
    canary = pickle.dumps(Canary(trace))
    folders = [path for path in root.rglob("*") if path.is_dir()]
    names = ("pytorch_model.bin", "latest", "mp_rank_00_model_states.pt", "optimizer.pkl", "rank_00001.safetensors")
    for folder in folders:
        for name in names:
            (folder / name).write_bytes(canary)
    assert main(same) == 0
    model = run / "model"
    (model / "pytorch_model.bin").write_bytes(canary)
    assert main(["generate", f"model.path={model}", "prompt=the", "max_new_tokens=4"]) == 0
    assert main(["evaluate", f"model.path={model}", f"storage.root={root}", "max_sequences=4"]) == 0
    assert not trace.exists()


def test_a_checkpoint_that_is_a_pickle_is_refused(text: Path, tmp_path: Path) -> None:
    root, trace = tmp_path / "outputs", tmp_path / "was-unpickled"
    same = arguments(text, root, "run.name=tiny", "tracking.mode=disabled")
    assert main(same) == 0
    run = root / "runs/tiny"
    go_back(run, 20)
    for shard in run.glob("checkpoints/*/rank_*.safetensors"):
        shard.write_bytes(pickle.dumps(Canary(trace)))
    assert main(same) == 1
    assert not trace.exists()
