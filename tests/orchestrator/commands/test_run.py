"""`orchestrator run`: every stage is composed and checked before anything is written."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from pipelines import write_eight_stages
from tiny_run import write_text

from orchestrator.cli import main


@pytest.fixture
def eight(empty_folder: Path) -> list[str]:
    return ["run", "--config-dir", str(write_eight_stages(empty_folder)), "+pipeline=eight"]


def test_a_dry_run_says_what_would_run_and_imports_no_torch(eight: list[str], empty_folder: Path) -> None:
    script = (
        "import sys\nfrom orchestrator.cli import main\n"
        f"assert main({[*eight, 'dry_run=true']!r}) == 0\n"
        "assert not {'torch', 'ray', 'deepspeed', 'wandb'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("would run") == 8
    assert done.stdout.count("never run before") == 8
    assert not (empty_folder / "outputs").exists()


def test_mistakes_of_several_stages_are_told_at_once_and_nothing_is_written(
    eight: list[str], empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = [
        'pipeline.stages.more1.overrides=["trainig.num_steps=3"]',
        "pipeline.stages.alone.command=prepair",
        "pipeline.stages.score2.inputs={model.path: mor2}",
        "pipeline.stages.score3.imputs={}",
    ]
    assert main([*eight, *wrong[:3]]) == 2
    said = capsys.readouterr().err
    assert "pipeline.stages.more1: trainig.num_steps=3: unknown; did you mean training?" in said
    assert "pipeline.stages.alone: prepair: no such command; did you mean prepare?" in said
    assert "pipeline.stages.score2.inputs.model.path=mor2: no such stage; did you mean more2?" in said
    assert main([*eight, wrong[3]]) == 2
    assert "did you mean pipeline.stages.score3.inputs?" in capsys.readouterr().err
    assert not (empty_folder / "outputs").exists()


def test_without_a_pipeline_one_must_be_given(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert "pipeline: must be given" in capsys.readouterr().err
    assert not list(empty_folder.iterdir())


@pytest.mark.slow
def test_stages_of_two_cpus_run_their_commands_and_what_is_done_is_not_run_again(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_text(empty_folder / "text.txt")
    conf = empty_folder / "conf/pipeline"
    conf.mkdir(parents=True)
    stages = (
        f"  one: {{command: prepare, overrides: [data=files, data.path={text}, data.split=position, tokenizer=byte]}}\n"
    )
    (conf / "one.yaml").write_text(f"# @package pipeline\n# One stage.\nname: one\nstages:\n{stages}")
    command = ["run", "--config-dir", str(empty_folder / "conf"), "+pipeline=one"]
    assert main(command) == 0
    assert "one  done" in capsys.readouterr().out
    before = time.time()
    assert main(command) == 0
    assert "one  done before" in capsys.readouterr().out
    (log,) = (empty_folder / "outputs/runs/one").glob("one-*/log.txt")
    assert log.stat().st_mtime < before
    assert main(["runs", "show", "one"]) == 0
    assert "prepare" in capsys.readouterr().out
