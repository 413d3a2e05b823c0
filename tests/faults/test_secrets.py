"""What a run leaves behind holds no secret of its environment, and nothing that is read is a pickle."""

import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from broken_run import TERMINATE, BrokenRun
from signed_files import QUERIES, SECRET, serve
from tiny_run import arguments, go_back, write_text

from modules.config import TokenizerConfig
from modules.data.tokenizer import build_tokenizer
from orchestrator.cli import main
from orchestrator.cli.command import COMMANDS
from orchestrator.configuration import commands
from orchestrator.configuration.schema import explanation, leaves, takes_text
from orchestrator.storage import retry

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "canary-aws-0123456789abcdef",
    "SOME_SERVICE_TOKEN": "canary-token-0123456789abcdef",
    "DATABASE_PASSWORD": "canary-password-0123456789",
    "CLIENT_SECRET": "canary-secret-0123456789",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def web(text: Path) -> Iterator[str]:
    """Yield the address of a server that has the text and a tokenizer, each for its own signature."""
    tokenizer = build_tokenizer(TokenizerConfig(kind="byte"), lambda: iter(()), None).serialised()
    files = {"/text.txt": text.read_bytes(), "/tokenizer.json": tokenizer.encode()}
    with serve(files, {"/text.txt": QUERIES["s3"], "/tokenizer.json": QUERIES["azure"]}, {"ETag": '"v1"'}) as address:
        yield address


def test_no_secret_is_in_a_file_a_message_or_a_process_title(
    text: Path, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    signed = [f"data.path={web}/text.txt?{QUERIES['s3']}", "tokenizer=file"]
    signed.append(f"tokenizer.path={web}/tokenizer.json?{QUERIES['azure']}")
    tracked = ["tracking.mode=offline", "tracking.tags=[canary-token-0123456789abcdef]", "training.num_steps=100000"]
    where = ["strategy=ddp", "cluster.num_workers=2", "run.name=tiny"]
    with BrokenRun(arguments(text, tmp_path / "outputs", *tracked, *where, *signed)) as run:
        run.wait_for_step(12)
        processes = [psutil.Process(run.process.pid), *run.workers()]
        titles = " ".join(" ".join(process.cmdline()[3:]) for process in processes[1:])
        run.process.send_signal(TERMINATE)
        assert run.end() == 143, run.said
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    # the tag is the user's own word, which W&B is given; all else comes from nowhere
    tracked_in = {path for path in files if path.suffix == ".wandb"}
    assert tracked_in
    for value in (*SECRETS.values(), SECRET):
        found = [path for path in files if value.encode() in path.read_bytes()]
        assert set(found) <= (tracked_in if value == SECRETS["SOME_SERVICE_TOKEN"] else set())
        assert value not in run.said + titles
    assert f"{web}/text.txt?***" in (tmp_path / "outputs/runs/tiny/config.yaml").read_text()


PLANTED = {
    "signed": f"http://127.0.0.1:9/x.txt?{QUERIES['s3']}",
    "signed_without_names": f"http://127.0.0.1:9/x.txt?{QUERIES['without_names']}",
    "azure": f"abfs://container@account.dfs.core.windows.net/x.txt?{QUERIES['azure']}",
    "password": f"https://user:{SECRET}@127.0.0.1:9/x.txt",
    "token": f"https://{SECRET}@127.0.0.1:9/x.txt",
    "s3_keys": f"s3://AKIA{SECRET}:{SECRET}/x@bucket/x.txt",
}
"""URLs that cannot be read, so that the error of the connection, which holds the whole URL, comes into play."""
_ROWS = ("data=files", "data.path=x.jsonl")
_PAIR = ("model.path=x/y", "other.path=x/z")
PATH_FIELDS = {
    "prepare": {
        "data.path": ["data=files"],
        "data.val_path": ["model.path=x/y", *_ROWS, "task=translation"],
        "data.test_path": ["model.path=x/y", *_ROWS, "task=translation"],
        "tokenizer.path": ["tokenizer=file"],
        "storage.root": [],
        "task.chat_template": ["model.path=x/y", *_ROWS, "task=dialogue"],
    },
    "finetune": {
        "model.path": [*_ROWS, "task=translation"],
        "data.path": ["model.path=x/y", "data=files", "task=translation"],
        "data.val_path": ["model.path=x/y", *_ROWS, "task=translation"],
        "data.test_path": ["model.path=x/y", *_ROWS, "task=translation"],
        "storage.root": ["model.path=x/y", *_ROWS, "task=translation"],
        "task.chat_template": ["model.path=x/y", *_ROWS, "task=dialogue"],
    },
    "pretrain": {
        "data.path": ["data=files"],
        "data.val_path": list(_ROWS),
        "data.test_path": list(_ROWS),
        "tokenizer.path": ["tokenizer=file"],
        "storage.root": [],
        "model.path": [],
    },
    # it reads no data: a mistake beside them shows what is said of their values
    "plan": {
        "data.path": ["pretrain", "data=files", "plan.nope=1"],
        "data.val_path": ["pretrain", *_ROWS],
        "data.test_path": ["pretrain", *_ROWS],
        "tokenizer.path": ["pretrain", "tokenizer=file"],
        "storage.root": ["pretrain", "plan.nope=1"],
        "model.path": ["pretrain"],
    },
    "evaluate": {
        "to": ["model.path=x/y"],
        "model.path": [],
        "model.adapter": ["model.path=x/y"],
        "storage.root": ["model.path=x/y"],
        "data.path": ["model.path=x/y", "data=files"],
        "data.val_path": ["model.path=x/y", *_ROWS, "task=translation"],
        "data.test_path": ["model.path=x/y", *_ROWS, "task=translation"],
        "task.chat_template": ["model.path=x/y", *_ROWS, "task=dialogue"],
        "harness.include_path": ["model.path=x/y", "harness.tasks=[x]"],
    },
    "compare": {
        "to": [*_PAIR, *_ROWS, "task=translation"],
        "model.path": ["other.path=x/y", *_ROWS, "task=translation"],
        "model.adapter": [*_PAIR, *_ROWS, "task=translation"],
        "other.path": ["model.path=x/y", *_ROWS, "task=translation"],
        "other.adapter": [*_PAIR, *_ROWS, "task=translation"],
        "other.predictions": ["model.path=x/y", *_ROWS, "task=translation"],
        "storage.root": [*_PAIR, *_ROWS, "task=translation"],
        "data.path": [*_PAIR, "data=files", "task=translation"],
        "data.val_path": [*_PAIR, *_ROWS, "task=translation"],
        "data.test_path": [*_PAIR, *_ROWS, "task=translation"],
        "task.chat_template": [*_PAIR, *_ROWS, "task=dialogue"],
    },
    "predict": {
        "model.path": ["text=x"],
        "model.adapter": ["model.path=x/y", "text=x"],
        "data.path": ["model.path=x/y", "data=files"],
        "data.val_path": ["model.path=x/y", *_ROWS],
        "data.test_path": ["model.path=x/y", *_ROWS],
        "output": ["model.path=x/y", *_ROWS],
        "task.chat_template": ["model.path=x/y", "text=x", "task=dialogue"],
    },
    "generate": {
        "model.path": [],
        "model.adapter": ["model.path=x/y"],
        "prompts_file": ["model.path=x/y"],
        "output": ["model.path=x/y", "prompts_file=prompts.txt"],
    },
    "chat": {"model.path": [], "model.adapter": ["model.path=x/y"], "chat_template": ["model.path=x/y"]},
    "explain": {
        "model.path": ["prompt=x"],
        "model.adapter": ["model.path=x/y", "prompt=x"],
        "to": ["model.path=x/y", "prompt=x"],
        "storage.root": ["model.path=x/y", "prompt=x"],
    },
    "export": {"to": ["run.name=x"], "storage.root": ["run.name=x"]},
    "batch": {"output": ["run.name=x", "step=1"], "storage.root": ["run.name=x", "step=1"]},
    "run": {"storage.root": ["+pipeline=quickstart", "dry_run=true"]},
    "report": {"graph": ["runs=x"], "to": ["runs=x"], "storage.root": ["runs=x"]},
    "runs": {"storage.root": []},
    "doctor": {"storage.root": [], "cluster.address": ["cluster=ray"]},
    "submit": {"submit.address": ["runs", "storage.root=/x"]},
    "jobs": {"address": []},
    "logs": {"address": ["name=x"]},
    "stop": {"address": ["name=x"]},
}
"""Every field that takes a path or an address, and what else must be set with it."""
for _fields in PATH_FIELDS.values():
    if "storage.root" in _fields:
        _fields["storage.cache_dir"] = _fields["storage.root"]
    if "data.path" in _fields:
        _fields["data.decontaminate.path"] = [*_fields["data.path"], "data.path=x.txt"]
        _fields["data.deduplicate.against"] = [*_fields["data.decontaminate.path"], "data.deduplicate.kind=exact"]
ALL_KINDS = (("prepare", "data.path"), ("generate", "model.path"))
PLANTS = [
    (command, field, kind)
    for command, fields in PATH_FIELDS.items()
    for field in fields
    for kind in (PLANTED if (command, field) in ALL_KINDS else ("signed", "password"))
]


def test_every_field_that_takes_a_path_is_planted() -> None:
    a_path, names = re.compile(r"\b(path|folder|URL|address|file)\b"), ("run.name", "tokenizer.end_token")
    assert PATH_FIELDS.keys() == COMMANDS.keys()
    for command, fields in PATH_FIELDS.items():
        found = {
            name
            for name, field in leaves(getattr(commands, COMMANDS[command].config))
            if takes_text(field) and a_path.search(explanation(field)) and name not in names
        }
        # Ray's own wait for an address takes half a minute, so doctor, which asks more quickly, stands for pretrain
        assert found - {"cluster.address"} == set(fields) - {"cluster.address"}, command


@pytest.mark.parametrize(("command", "field", "kind"), PLANTS)
def test_nothing_of_a_url_that_fails_is_shown_or_kept(
    empty_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    field: str,
    kind: str,
) -> None:
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    monkeypatch.setenv("HOME", str(empty_folder))
    assert main([command, *PATH_FIELDS[command][field], f"{field}={PLANTED[kind]}"]) != 0
    said = "".join(capfd.readouterr())
    assert SECRET not in said
    assert "Traceback" not in said
    assert not [path for path in empty_folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.parametrize("shown", ["--cfg=job", "--cfg=all", "--info=all", "--help"])
def test_nothing_of_a_url_is_in_a_configuration_that_is_shown(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], shown: str
) -> None:
    monkeypatch.setenv("COLUMNS", "600")  # --help would cut a long value
    assert main(["prepare", "data=files", f"data.path={PLANTED['signed']}", shown]) == 0
    said = "".join(capfd.readouterr())
    assert SECRET not in said
    assert "http://127.0.0.1:9/x.txt?***" in said


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
