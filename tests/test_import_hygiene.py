"""What is imported for what (CONTRIBUTING, invariant 8)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modules.config_fields import Config

ROOT = Path(__file__).resolve().parents[1]
TRAINING_LIBRARIES = {"torch", "ray", "deepspeed", "wandb", "lm_eval"}


def imported_by(script: str) -> set[str]:
    """Return the top-level packages that a new interpreter has after `script`."""
    tail = "\nimport json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script + tail]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT / "tests", check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_of_a_command_imports_no_training_library() -> None:
    loaded = imported_by("from orchestrator.cli import main; assert main(['pretrain', '--help']) == 0")
    assert "hydra" in loaded
    assert loaded & TRAINING_LIBRARIES == set()


def test_a_mistake_is_found_before_any_training_library_is_imported() -> None:
    loaded = imported_by("from orchestrator.cli import main; assert main(['pretrain', 'model.nope=1']) == 2")
    assert loaded & TRAINING_LIBRARIES == set()


def test_local_workers_start_to_import_before_this_process_imports_what_it_needs() -> None:
    loaded = imported_by(
        "from orchestrator.cli import main\nfrom orchestrator.cluster import fork_server\n"
        "def start() -> None:\n    raise SystemExit(77)\n"
        "fork_server.start = start\n"
        "assert main(['pretrain', 'strategy=ddp', 'cluster.num_workers=2', 'model.nope=1']) == 2\n"
        "assert main(['pretrain', 'strategy=ddp', 'cluster.num_workers=2']) == 77"
    )
    assert loaded & {*TRAINING_LIBRARIES, "numpy", "tokenizers"} == set()


def test_driver_and_mailbox_of_a_run_on_ray_need_no_torch_until_a_cluster_starts() -> None:
    script = (
        "import sys, orchestrator.cluster.ray_cluster, orchestrator.cluster.ray_mailbox\n"
        "from orchestrator.cluster.ray_resources import of_this_machine\n"
        "assert of_this_machine(with_gpus=False).present['GPU'] == 0\n"
        "assert 'ray.train' not in sys.modules"
    )
    loaded = imported_by(script)
    assert "ray" in loaded
    assert "torch" not in loaded


def test_configuration_classes_import_neither_hydra_nor_torch() -> None:
    assert (
        imported_by("import orchestrator.configuration.commands") & {*TRAINING_LIBRARIES, "hydra", "omegaconf"} == set()
    )


def test_plan_imports_neither_a_training_library_nor_numpy(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    settings = {"model_type": "llama", "vocab_size": 64, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, **shape}
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    tuned = ["finetune", "method=lora", "task=dialogue", f"model.path={tmp_path}"]
    script = "from orchestrator.cli import main" + "".join(
        f"\nassert main({['plan', *words]}) == 0" for words in (["pretrain", "device=h100", "strategy=auto"], tuned)
    )
    assert imported_by(script) & {*TRAINING_LIBRARIES, "transformers", "numpy", "tokenizers"} == set()


def test_a_configuration_class_builds_its_validator_when_it_is_first_used() -> None:
    class Some(Config):
        number: int = 1

    assert not Some.__pydantic_complete__
    assert Some.model_validate({"number": 2}).number == 2
    assert Some.__pydantic_complete__


def test_tasks_import_neither_torch_nor_transformers() -> None:
    script = (
        "from importlib import import_module\nfrom modules.tasks.registry import TASKS\n"
        "import modules.tasks.chat_files\nfor name in TASKS.values():\n    import_module(name)"
    )
    assert imported_by(script) & {*TRAINING_LIBRARIES, "transformers"} == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        "prepare",
        "pretrain",
        "plan",
        "evaluate",
        "compare",
        "predict",
        "generate",
        "chat",
        "explain",
        "report",
        "export",
        "submit",
        "jobs",
        "logs",
        "stop",
        "run",
        "runs",
        "batch",
        "doctor",
    ],
)
def test_command_module_imports_neither_ray_nor_deepspeed_nor_wandb(module: str) -> None:
    loaded = imported_by(f"import orchestrator.commands.{module}")
    assert loaded & {"ray", "deepspeed", "wandb", "hydra", "lm_eval"} == set()


@pytest.mark.parametrize("file", sorted((ROOT / "modules").rglob("*.py")), ids=lambda file: file.stem)
def test_library_has_no_import_of_what_runs_it(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for name in ("orchestrator", "ray", "hydra", "omegaconf", "deepspeed", "wandb"):
        assert f"import {name}" not in text
        assert f"from {name}" not in text
