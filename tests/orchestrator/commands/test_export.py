"""`orchestrator export`: which checkpoint, where to, and what is never overwritten."""

import json
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from checkpoints import begin_run, random_model, write_checkpoint

from modules.errors import InputError
from orchestrator.artifacts import artifact
from orchestrator.artifacts.models import load_model
from orchestrator.checkpoints.fragments import FragmentReader
from orchestrator.cli import main
from orchestrator.commands.export import run
from orchestrator.configuration.commands import ExportConfig
from orchestrator.errors import OrchestratorError, UserError
from orchestrator.storage.store import Storage

SHAPE = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16}
FIGURES = {"train/loss": 2.5, "train/loss_clm": 2.5, "throughput/mfu": 0.4}
FINAL = {"progress/step": 20, "val/loss_clm": 2.25, "train/loss": 2.5, "train/loss_mlm": 7.0}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unfinished run with checkpoints after steps 10 and 20 of 20."""
    folder = tmp_path_factory.mktemp("begun")
    storage = begin_run(folder, SHAPE)
    for step in (10, 20):
        write_checkpoint(storage, step, random_model(SHAPE), num_ranks=2, metrics=FIGURES)
    return folder


@pytest.fixture
def storage(begun: Path, tmp_path: Path) -> Storage:
    """The store of a copy of that run."""
    shutil.copytree(begun, tmp_path, dirs_exist_ok=True)
    return Storage(str(tmp_path / "outputs"))


def finish(storage: Storage) -> None:
    storage.write_bytes("runs/tiny/metrics.json", json.dumps(FINAL).encode())


def export(storage: Storage, *words: str, by_hydra: bool = False) -> int:
    """Run the command and return its exit code; without Hydra, which takes longer than the export."""
    words = ("run.name=tiny", f"storage.root={storage.url()}", *words)
    if by_hydra:
        return main(["export", *words])
    values: dict[str, Any] = {}
    for path, _, value in (word.partition("=") for word in words):
        group, _, name = path.rpartition(".")
        (values.setdefault(group, {}) if group else values)[name] = value
    try:
        run(ExportConfig.model_validate(values))
    except OrchestratorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def refusal(
    capsys: pytest.CaptureFixture[str], storage: Storage, *words: str, code: int = 2, by_hydra: bool = False
) -> str:
    """Return the message of an export that is refused, and leaves everything as it is."""
    root = storage.local_path()
    assert root is not None
    before = {path: path.stat().st_mtime_ns for path in root.parent.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert export(storage, *words, by_hydra=by_hydra) == code
    assert {path: path.stat().st_mtime_ns for path in root.parent.rglob("*") if path.is_file()} == before
    return capsys.readouterr().err


def test_a_run_that_is_not_done_is_exported_beside_the_place_of_its_last_model(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    for step, words in ((20, []), (10, ["step=10"])):
        place = f"runs/tiny/exports/step_000000{step}"
        assert export(storage, *words) == 0
        assert f"model: {storage.url(place)} (step {step}, float32)\n" in capsys.readouterr().out
        assert artifact.verify(storage, place)["step"] == step
    assert not storage.exists("runs/tiny/model")


def test_a_finished_run_is_exported_to_its_own_place_where_it_is_missing(storage: Storage) -> None:
    finish(storage)
    assert export(storage, "step=10") == 0
    assert not storage.exists("runs/tiny/model")
    assert export(storage) == 0
    assert artifact.verify(storage, "runs/tiny/model")["step"] == 20


def test_what_is_there_already_is_said_and_not_written_again(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(storage) == 0
    folder = storage.local_path("runs/tiny/exports/step_00000020")
    assert folder is not None
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    assert export(storage) == 0
    assert capsys.readouterr().out == f"model: {folder} holds it already (step 20); nothing was written\n"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_model_exported_before_there_was_a_choice_of_type_counts_as_float32(storage: Storage) -> None:
    assert export(storage) == 0
    name = "runs/tiny/exports/step_00000020"
    manifest = artifact.read_manifest(storage, name)
    artifact.commit(storage, name, artifact.file_entries(manifest), {"kind": "model", "step": 20})
    assert export(storage) == 0
    assert export(storage, "export.dtype=bfloat16") == 2


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["export.dtype=bfloat16"], "holds this run's model with dtype float32 instead of bfloat16"),
        (["export.license=mit"], "holds this run's model with license None instead of mit"),
        (["step=10"], "holds this run's model with step 20 instead of 10"),
    ],
)
def test_another_model_at_the_target_is_not_overwritten(
    words: list[str], part: str, storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(storage, f"to={tmp_path}/out") == 0
    said = refusal(capsys, storage, f"to={tmp_path}/out", *words)
    assert said.startswith(f"error: to={tmp_path}/out: {part}, and nothing is overwritten")


def test_a_model_of_another_recipe_is_not_overwritten(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(storage, f"to={tmp_path}/out") == 0
    recipe = json.loads(storage.read_bytes("runs/tiny/recipe.json"))
    storage.write_bytes("runs/tiny/recipe.json", json.dumps({**recipe, "seed": 5}).encode())
    assert "out: holds a model of another recipe" in refusal(capsys, storage, f"to={tmp_path}/out")


def test_what_is_no_model_is_not_overwritten(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "full: is not empty, and nothing is overwritten" in refusal(capsys, storage, f"to={tmp_path}/full")
    assert "text.txt: is a file; name a new folder" in refusal(capsys, storage, f"to={tmp_path}/text.txt")
    data = f"to={storage.url()}/data/{storage.list('data')[0]}"
    assert "holds an artifact of kind data" in refusal(capsys, storage, data)
    (tmp_path / "empty").mkdir()
    assert export(storage, f"to={tmp_path}/empty") == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run.name=tinny"], "run.name=tinny: no such run in {root}/runs; did you mean tiny?"),
        (["run.name=../x"], "run.name=../x: must begin with a letter or digit"),
        (["step=11"], "step=11: run tiny has no finished checkpoint after it; there are 10, 20"),
        (["to="], "to='': is empty"),
        (["to=s3://key:secret@bucket/x"], "s3://***@bucket/x: a URL must not hold a key or password"),
        (["to=https://host/x?sig=SIGNED"], "https://host/x?***: a URL with a query leads to a single file"),
        (["to=nostore://x"], "'nostore' is no kind of store"),
        (["export.dtype=int8"], "export.dtype=int8: "),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    words: list[str], part: str, storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(capsys, storage, *words, by_hydra=True)
    assert part.format(root=storage.url()) in said
    assert "secret" not in said
    assert "SIGNED" not in said


def test_a_run_without_a_finished_checkpoint_says_so(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (10, 20):
        storage.remove(f"runs/tiny/checkpoints/step_000000{step}/COMMITTED")
    assert "run.name=tiny: it has no finished checkpoint yet" in refusal(capsys, storage)


def test_a_run_whose_text_is_gone_says_so(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    storage.remove("data")
    assert "the text that run tiny was trained on is not there" in refusal(capsys, storage)


def test_the_tokens_are_not_needed(storage: Storage) -> None:
    folder = storage.local_path("data")
    assert folder is not None
    for file in folder.glob("*/*.bin"):
        file.unlink()
    assert export(storage) == 0


@pytest.mark.parametrize("file", ["rank_00001-a1-1.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_named_with_its_file_and_the_remedy(
    file: str, storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"runs/tiny/checkpoints/step_00000020/{file}"
    data = bytearray(storage.read_bytes(name))
    data[len(data) // 8] ^= 1
    storage.write_bytes(name, bytes(data))
    said = refusal(capsys, storage, f"to={tmp_path}/out", code=1)
    assert file in said
    assert "is damaged" in said
    assert "export another one with step= (10)" in said
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".staging*")) == []


def test_a_checkpoint_that_the_run_removes_meanwhile_is_not_called_damaged(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill = FragmentReader.fill

    def pruned(self: FragmentReader, wanted: Any) -> None:
        storage.remove("runs/tiny/checkpoints/step_00000010")
        fill(self, wanted)

    monkeypatch.setattr(FragmentReader, "fill", pruned)
    assert export(storage, "step=10") == 1
    said = capsys.readouterr().err
    assert "the run has removed this checkpoint in the meantime; export another one with step= (20)" in said


def test_a_damaged_export_is_named_with_the_remedy(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(storage) == 0
    place = "runs/tiny/exports/step_00000020"
    storage.write_bytes(f"{place}/model.safetensors", b"short")
    said = refusal(capsys, storage, code=1)
    assert "model.safetensors has 5 bytes" in said
    assert f"remove {storage.url(place)}, and the same command writes it anew" in said


def test_a_number_too_large_for_float16_is_refused(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(SHAPE)
    model.final_norm.weight.data[3] = 70_000.0
    storage.remove("runs/tiny/checkpoints/step_00000020")
    write_checkpoint(storage, 20, model)
    said = refusal(capsys, storage, "export.dtype=float16")
    assert said.startswith("error: final_norm.weight: holds numbers beyond 65504, the largest of float16")
    assert export(storage, "export.dtype=bfloat16") == 0


def test_a_model_is_exported_from_and_to_any_url(storage: Storage, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    Storage("memory://there").upload(storage.local_path() or Path(), "outputs")
    here, default = Storage("memory://here/models"), Storage("memory://there/outputs")
    assert export(default, "to=memory://here/models/mine") == 0
    assert export(default) == 0
    assert artifact.verify(here, "mine")["step"] == 20
    assert artifact.verify(default, "runs/tiny/exports/step_00000020")["step"] == 20
    Storage("memory://here").download("models/mine", tmp_path / "copy")
    assert load_model(str(tmp_path / "copy")).model.config.hidden_dim == 16


def test_an_interrupted_export_leaves_nothing_that_other_tools_would_read(storage: Storage) -> None:
    """`transformers` reads model.safetensors rather than the files of an index."""
    store = Storage(f"memory://{uuid.uuid4().hex}")
    store.upload(storage.local_path() or Path(), "")
    place = "runs/tiny/exports/step_00000020"
    assert export(store) == 0
    assert store.exists(f"{place}/model.safetensors")
    store.remove(f"{place}/COMMITTED")
    assert export(store, "export.max_shard_bytes=9000") == 0
    manifest = artifact.verify(store, place)
    assert len([file for file in manifest["files"] if file.startswith("model-")]) > 1
    assert {*store.list(place)} == {*manifest["files"], "manifest.json", "COMMITTED"}


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_card_tells_what_is_known_and_nothing_else(storage: Storage, tmp_path: Path) -> None:
    assert export(storage, f"to={tmp_path}/early", "step=10", "export.license=apache-2.0") == 0
    finish(storage)
    assert export(storage, "export.dtype=bfloat16") == 0
    early = (tmp_path / "early" / "README.md").read_text()
    last = storage.read_bytes("runs/tiny/model/README.md").decode()
    assert front_matter(early) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    assert "license" not in front_matter(last)
    assert [line[3:] for line in early.splitlines() if line.startswith("## ")] == [
        *("Model", "Data", "Training", "Figures", "Use", "Versions")
    ]
    assert "| steps | 10 of 20 |" in early
    assert "| tokens seen | 2,560 |" in early
    assert "| source | files: text.txt |" in early
    assert f"| fingerprint | `{storage.list('data')[0].rpartition('-')[2]}` |" in early
    assert "| 2.5 | `train/loss` |" in early
    assert "`val/" not in early
    assert "mfu" not in early
    assert "| 2.25 | `val/loss_clm` |" in last
    # of an objective that was over before this step
    assert "train/loss_mlm" not in last
    assert "Measured before the weights were rounded to bfloat16." in last


def test_lines_of_the_card_run(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert export(storage, f"to={tmp_path}/out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    code, command = (card.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "sh"))
    monkeypatch.chdir(tmp_path / "out")
    capsys.readouterr()
    exec(code, {})
    assert capsys.readouterr().out.startswith("Once upon a time")
    words = command.strip().replace('"', "").split(" ", 2)
    call = [words[1], "model.path=.", "prompt=Once upon a time", words[2].rpartition(" ")[2]]
    assert main(call) == 0
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_an_export_is_read_where_it_was_moved(storage: Storage, tmp_path: Path) -> None:
    assert export(storage, f"to={tmp_path}/out") == 0
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert load_model(f"{tmp_path}/moved").end_ids == (256,)
