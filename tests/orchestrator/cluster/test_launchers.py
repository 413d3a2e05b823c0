"""The launchers: the same run in this process, under torch's elastic agent and on Ray, and their failure messages."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_run import arguments, write_text
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from modules.errors import InputError
from orchestrator.cli import main
from orchestrator.cluster import base, local
from orchestrator.errors import ArtifactError, LeaseLostError, RefusedError, StorageError
from orchestrator.storage.errors import NotFoundError

FOREIGN = ("ray", "deepspeed", "wandb")
UNTRACKED = "tracking.mode=disabled"
pytestmark = pytest.mark.slow


def on_ray(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that starts Ray, which warns about its own settings while it starts."""
    return pytest.mark.ray(pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")(test))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def losses_of_one_process(text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    done = run_command(arguments(text, tmp_path_factory.mktemp("single"), UNTRACKED, "run.name=tiny"))
    return losses(done.stdout)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """One embedded Ray for all tests of this module; the launcher connects to one that is running."""
    os.environ["RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def run_command(command: list[str], *, code: int = 0, script: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as a user does; `script` is appended to it."""
    program = f"import sys\nfrom orchestrator.cli import main\ncode = main({command!r})\n{script}\nsys.exit(code)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def losses(said: str) -> list[float]:
    """Return the loss of each of the 20 steps, from the plain progress lines."""
    found = {int(step): float(loss) for step, loss in re.findall(r"step +(\d+)/20  loss ([\d.]+)", said)}
    assert sorted(found) == list(range(1, 21))
    return [found[step] for step in sorted(found)]


def break_checkpoints(root: Path) -> None:
    """Create a file at the path of the checkpoint folder."""
    (root / "runs/tiny").mkdir(parents=True)
    (root / "runs/tiny/checkpoints").touch()


def test_one_worker_of_a_distributed_strategy_trains_in_this_process(
    text: Path, tmp_path: Path, losses_of_one_process: list[float]
) -> None:
    done = run_command(arguments(text, tmp_path, UNTRACKED, "strategy=zero2"))
    assert losses(done.stdout) == pytest.approx(losses_of_one_process, abs=1.5e-3)


def test_local_ddp_without_tracking_or_ordered_faults_imports_nothing_for_them(text: Path, tmp_path: Path) -> None:
    unneeded = [*FOREIGN, "orchestrator.training.faults", "orchestrator.training.callbacks.faults"]
    script = f"import json\nprint(json.dumps([name for name in {unneeded} if name in sys.modules]))"
    done = run_command(arguments(text, tmp_path, UNTRACKED, "strategy=ddp"), script=script)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_two_local_workers_give_the_losses_of_one(
    text: Path, tmp_path: Path, losses_of_one_process: list[float]
) -> None:
    done = run_command(arguments(text, tmp_path, UNTRACKED, "strategy=ddp", "cluster.num_workers=2"))
    assert losses(done.stdout) == pytest.approx(losses_of_one_process, abs=1.5e-3)
    assert "Results of" in done.stdout
    assert done.stderr == ""


def test_failure_of_a_local_worker_is_its_own_message_with_rank_and_node(text: Path, tmp_path: Path) -> None:
    break_checkpoints(tmp_path)
    command = arguments(text, tmp_path, UNTRACKED, "run.name=tiny", "strategy=ddp", "cluster.num_workers=2")
    said = run_command(command, code=1).stderr
    assert re.fullmatch(r"error: worker rank \d on \S+: .*checkpoint not saved: worker 0: .*\n", said)


@on_ray
def test_two_workers_on_ray_with_zero2_give_the_losses_of_one(
    text: Path,
    tmp_path: Path,
    losses_of_one_process: list[float],
    ray_cluster: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = arguments(text, tmp_path, UNTRACKED, "strategy=zero2", "cluster=ray", "cluster.num_workers=2")
    assert main(command) == 0
    assert losses(capsys.readouterr().out) == pytest.approx(losses_of_one_process, abs=1.5e-3)


@pytest.mark.long  # in the short form a cluster that shrinks and grows stands for it
@on_ray
def test_elastic_number_of_workers_takes_what_the_cluster_has(
    text: Path,
    tmp_path: Path,
    losses_of_one_process: list[float],
    ray_cluster: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    elastic = ["strategy=ddp", "cluster=ray", "cluster.num_workers=[1,4]", "training.global_batch_size=12"]
    assert main(arguments(text, tmp_path, UNTRACKED, *elastic)) == 0
    assert len(losses(capsys.readouterr().out)) == 20


@on_ray
def test_failure_of_a_worker_on_ray_is_its_own_message_with_rank_and_node(
    text: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    break_checkpoints(tmp_path)
    command = arguments(text, tmp_path, UNTRACKED, "run.name=tiny", "strategy=ddp", "cluster=ray")
    assert main([*command, "cluster.num_workers=2"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: worker rank \d on \S+: .*checkpoint not saved: worker 0: .*\n", said)


@on_ray
def test_text_prepared_by_a_cluster_has_the_bytes_of_one_machine_and_a_bad_file_is_named(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").mkdir()
    for name in "abc":
        (tmp_path / f"text/{name}.txt").write_text(f"{name} quick brown fox, größer. " * 25_000)
    command = ["prepare", "data=files", f"data.path={tmp_path}/text", "tokenizer=byte", "data.val_fraction=0.3"]
    command += ["data.split=position", "data.num_processes=1"]
    for cluster in ("local", "ray"):
        assert main([*command, f"cluster={cluster}", f"storage.root={tmp_path}/{cluster}"]) == 0
    local, ray = ([*(tmp_path / root / "data").rglob("*.*")] for root in ("local", "ray"))
    assert len(local) == len(ray) > 8
    for path in local:
        assert path.read_bytes() == (tmp_path / "ray" / path.relative_to(tmp_path / "local")).read_bytes()
    (tmp_path / "text/d.txt").write_bytes(b"abc\xff")
    capsys.readouterr()
    assert main([*command, "cluster=ray", f"storage.root={tmp_path}/bad"]) == 2
    assert "d.txt: byte 3 (0xff) is not UTF-8" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


@on_ray
def test_more_workers_than_the_cluster_has_are_refused_before_waiting(
    text: Path, tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(text, tmp_path, UNTRACKED, "strategy=ddp", "cluster=ray", "cluster.num_workers=4")
    assert main(command) == 2
    assert "the workers need 4 CPUs, and the cluster has 2" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (StorageError("no answer in 9 attempts"), False),
        (RefusedError("permission denied"), True),
        (NotFoundError("no such bucket"), True),
        (LeaseLostError("another driver has taken over this run"), True),
        (ArtifactError("damaged"), True),
        (InputError("too short"), True),
        (RuntimeError("out of memory"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_new_attempt_follows_what_may_pass_alone(error: Exception, is_final: bool) -> None:
    assert base.is_final(error) == is_final
    # torch's agent passes on the class's name and the text
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        message = {"message": f"{type(error).__name__}: {error}", "extraInfo": {"py_callstack": "", "timestamp": "1"}}
        json.dump({"message": message}, file)
        file.flush()
        failure = ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file=file.name)
    found = local._worker_error(ChildFailedError("train", {1: failure}))
    assert found.is_final == is_final
    assert str(error) in str(found)
