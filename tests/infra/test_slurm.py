"""The Slurm scripts: linted, and run against stand-ins whose arguments the real parsers of Ray and torchrun take."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray.scripts import symmetric_run
from ray.scripts.scripts import start as ray_start
from stand_ins import StandIns
from torch.distributed.run import get_args_parser

FOLDER = Path(__file__).resolve().parents[2] / "infra/slurm"
SCRIPTS = sorted(FOLDER.iterdir())
RAY, TORCHRUN = FOLDER / "ray.sbatch", FOLDER / "torchrun.sbatch"
COMMAND = ["pretrain", "+experiment=quickstart", "data.path=two words/*.txt"]


@pytest.fixture
def slurm(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path)


def ended(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=60)
    return said


def test_scripts_are_those_of_ray_and_of_torchrun() -> None:
    assert SCRIPTS == [RAY, TORCHRUN]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = subprocess.run([Path(sys.executable).parent / "shellcheck", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_ray_runs_on_every_node_and_the_command_on_the_first(slurm: StandIns) -> None:
    process = slurm.start(RAY, *COMMAND, SLURM_GPUS_ON_NODE="8", END="0")
    assert ended(process) == ""
    assert process.returncode == 0
    assert slurm.calls("ray")[0] == ["get-auth-token", "--generate"]
    ((_, *words),) = slurm.calls("ray")[1:]
    own, separator, _ = words[: words.index("--")], "--", words
    context = symmetric_run.symmetric_run.make_context("_", [*own, separator, "x"])
    assert (context.params["address"], context.params["min_nodes"]) == ("10.0.0.7:6379", 2)
    options = symmetric_run.curate_and_validate_ray_start_args(own)
    started = ray_start.make_context("start", options).params
    assert (started["num_cpus"], started["num_gpus"]) == (64, 8)
    assert slurm.calls("orchestrator") == [
        [
            *("pretrain", "cluster=ray", "cluster.address=auto", "cluster.num_workers=16"),
            *("cluster.lease_wait_seconds=90", *COMMAND[1:]),
        ]
    ]
    assert slurm.calls("scontrol") == []


def test_nodes_without_gpus_have_a_worker_each(slurm: StandIns) -> None:
    process = slurm.start(RAY, *COMMAND, END="0")
    ended(process)
    assert "cluster.num_workers=2" in slurm.calls("orchestrator")[0]


def test_torchrun_runs_on_every_node_with_a_process_for_each_gpu(slurm: StandIns) -> None:
    process = slurm.start(TORCHRUN, *COMMAND, SLURM_GPUS_ON_NODE="8", END="0")
    assert ended(process) == ""
    assert process.returncode == 0
    (words,) = slurm.calls("torchrun")
    taken = get_args_parser().parse_args(words)
    assert (taken.nnodes, taken.nproc_per_node, taken.max_restarts) == ("2", "8", 3)
    assert (taken.rdzv_id, taken.rdzv_backend, taken.rdzv_endpoint) == ("4711", "c10d", "10.0.0.7:29500")
    assert (taken.module, taken.training_script) == (True, "orchestrator")
    assert taken.training_script_args == ["pretrain", "cluster=torchrun", *COMMAND[1:]]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_notice_lets_the_command_save_and_puts_the_job_back_into_the_queue(slurm: StandIns, script: Path) -> None:
    process = slurm.start(script, *COMMAND)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGUSR1)
    assert "saved, code 143" in ended(process)
    assert process.returncode == 143
    assert slurm.calls("scontrol") == [["requeue", "4711"]]
    assert slurm.calls("scancel") == ([["--signal=TERM", "4711.0"]] if script == TORCHRUN else [])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
@pytest.mark.parametrize("code", [1, 2])
def test_failure_ends_the_job_with_its_code_and_is_not_repeated(slurm: StandIns, script: Path, code: int) -> None:
    process = slurm.start(script, *COMMAND, END=str(code))
    ended(process)
    assert process.returncode == code
    assert slurm.calls("scontrol") == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_without_a_command_says_how_it_is_used(slurm: StandIns, script: Path) -> None:
    process = slurm.start(script)
    assert ended(process).startswith(f"usage: sbatch infra/slurm/{script.name} COMMAND")
    assert process.returncode == 2
