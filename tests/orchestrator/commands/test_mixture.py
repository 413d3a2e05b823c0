"""A model is trained on three texts in proportions, from the command line to its figures and its card."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mixture_texts import write_texts
from tiny_run import go_back

from orchestrator.cli import main

pytestmark = pytest.mark.slow
SOURCES = (
    "data.sources=[{name: web, path: web.jsonl, weight: 0.5}, {name: code, path: [code.txt], weight: 0.25, "
    "split: position}, {name: law, path: law*.jsonl, text_field: body, weight: 0.25, max_epochs: 9}]"
)
PHASES = (
    "objective.phases=[{weights: {clm: 1, mlm: 1}, fraction: 0.5}, "
    "{weights: {clm: 1, mlm: 1}, fraction: 0.5, data_weights: {web: 1, law: 3}}]"
)
TINY = (
    *("data.val_fraction=0.2", "data.num_processes=1", "tokenizer=byte", "model.num_layers=1", "model.num_heads=2"),
    *("model.hidden_dim=16", "model.max_positions=16", "training.attention_scope=document", "optimizer.warmup_steps=2"),
    *("training.num_steps=8", "training.sequence_length=16", "training.global_batch_size=12", "training.val_batches=1"),
    *("training.log_interval_steps=1", "checkpoint.interval_steps=4", "tracking.mode=disabled", "run.name=mixed"),
)
COMMAND = ("pretrain", SOURCES, PHASES, *TINY)
FIGURES = ("loss_clm", "perplexity", "bits_per_byte", "loss_mlm", "mlm_accuracy")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the texts and the finished run."""
    folder = tmp_path_factory.mktemp("mixture")
    write_texts(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(COMMAND) == 0
    return folder


@pytest.fixture(autouse=True)
def _there(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)


def metrics() -> dict[str, float]:
    return json.loads(Path("outputs/runs/mixed/metrics.json").read_bytes())


def evaluated(*words: str) -> dict[str, Any]:
    """Return what `evaluate` finds of the model, without what it found before."""
    file = Path("outputs/runs/mixed/model/evaluation.json")
    file.unlink(missing_ok=True)
    assert main(("evaluate", "model.path=outputs/runs/mixed/model", *words)) == 0
    (found,) = json.loads(file.read_bytes())["text"].values()
    return found["metrics"]


def test_tokens_of_each_source_are_tracked_and_are_its_share_of_each_phase() -> None:
    found = metrics()
    # 4 steps of 12 samples of 16 tokens by 2:1:1, then 4 by 1:3
    assert [found[f"progress/tokens/{name}"] for name in ("web", "code", "law")] == [36 * 16, 12 * 16, 48 * 16]
    assert found["progress/tokens"] == 8 * 12 * 16
    history = "".join(file.read_text() for file in Path("outputs/runs/mixed/history").iterdir())
    assert history.count('"progress/tokens/web"') >= 8


def test_a_run_that_is_continued_ends_with_the_same_figures(trained: Path) -> None:
    before = metrics()
    go_back(trained / "outputs/runs/mixed", 4)
    assert main(COMMAND) == 0
    after = metrics()
    names = [name for name in before if name.startswith(("val/", "train/", "progress/"))]
    assert len(names) > 20
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


def test_validation_of_a_source_is_what_evaluate_finds_of_it_and_of_its_text_alone() -> None:
    found, validated = evaluated("max_sequences=12"), metrics()
    for name in FIGURES:
        assert found[f"val/{name}"] == pytest.approx(validated[f"val/{name}"], rel=1e-6)
        for source in ("web", "code", "law"):
            assert found[f"val/{source}/{name}"] == pytest.approx(validated[f"val/{source}/{name}"], rel=1e-6)
    loss = sum(validated[f"val/{name}/loss_clm"] * weight for name, weight in (("web", 2), ("code", 1), ("law", 1)))
    assert validated["val/loss_clm"] == pytest.approx(loss / 4)
    text = ("data=files", "data.path=law.jsonl", "data.text_field=body", "data.val_fraction=0.2")
    alone = evaluated("max_sequences=12", *text)
    assert [alone[f"val/{name}"] for name in FIGURES] == pytest.approx(
        [found[f"val/law/{name}"] for name in FIGURES], rel=1e-6
    )


def test_evaluate_takes_no_mixture_but_that_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("evaluate", "model.path=outputs/runs/mixed/model", "data.sources=[{name: a, path: web.jsonl}]")) == 2
    assert "data.sources: prepare and pretrain alone mix texts" in capsys.readouterr().err


def test_a_mixture_from_a_file_in_a_folder_of_the_user_is_that_which_was_typed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path("own/data")
    folder.mkdir(parents=True)
    sources = yaml.safe_load(SOURCES.removeprefix("data.sources="))
    (folder / "mine.yaml").write_text(yaml.safe_dump({"defaults": ["stdlib", "_self_"], "sources": sources}))
    words = ("pretrain", "data=mine", PHASES, *TINY)
    assert main((*words, "--config-dir", "own")) == 0
    assert "step" not in capsys.readouterr().err
    assert main((*words, "data.sources.0.weight=0.4", "--config-dir", "own")) == 2
    assert "mixture.web: was 0.5, now 0.4" in capsys.readouterr().err


def test_a_source_too_small_is_refused_before_a_run_begins(capsys: pytest.CaptureFixture[str]) -> None:
    data = sorted(Path("outputs/data").iterdir())
    assert main((*COMMAND, "run.name=other", "data.sources.2.max_epochs=0.25")) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: source law: the training takes 48 samples of it, which are 0.")
    assert "max_epochs=0.25 allows" in said
    assert not Path("outputs/runs/other").exists()
    assert sorted(Path("outputs/data").iterdir()) == data


def test_the_model_of_any_checkpoint_is_exported_and_its_card_names_the_sources(trained: Path) -> None:
    assert main(("export", "run.name=mixed", "step=4", "to=exported")) == 0
    card = Path("exported/README.md").read_text()
    assert "| source | a mixture of 3 texts |" in card
    assert "| source web | weight 0.5; files: web.jsonl; trained on: " in card
    assert f"{24 * 16:,} tokens seen |" in card
    assert "50 % of the steps: next token (1) and masked tokens (1) on web (1), law (3)" in card
    assert "(law) |" in Path("outputs/runs/mixed/model/README.md").read_text()


def test_a_mixture_is_prepared_as_any_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("prepare", SOURCES, *TINY[:3])) == 0
    (name,) = Path("outputs/data").glob("mixture-*")
    assert capsys.readouterr().out.splitlines()[-1] == f"data: {name.resolve()}"


@pytest.mark.long
def test_a_mixture_is_planned() -> None:
    assert main(("plan", "pretrain", SOURCES, PHASES, *TINY)) == 0


@pytest.mark.long
@pytest.mark.parametrize("sizes", [(2, 3), (3, 1), (1, 2)])
def test_losses_are_the_same_with_other_workers_before_and_after_a_stop(
    sizes: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = metrics()
    write_texts(tmp_path)
    monkeypatch.chdir(tmp_path)
    for size in sizes:
        words = (f"cluster.num_workers={size}", f"strategy={'ddp' if size > 1 else 'single'}")
        assert main((*COMMAND, *words)) == 0
        if size == sizes[0]:
            go_back(tmp_path / "outputs/runs/mixed", 4)
    found = metrics()
    for name in expected:
        if name.startswith(("val/", "train/", "progress/")):
            assert found[name] == pytest.approx(expected[name], rel=1e-5), name
