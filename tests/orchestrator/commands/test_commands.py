"""The commands as a user runs them: prepare, pretrain, evaluate, generate, and the files that they write."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from offline_wandb import artifact_records, history_of, read_records
from tiny_run import arguments, go_back, write_text

from orchestrator.cli import main
from orchestrator.report.layout import panels
from orchestrator.runs.events import EventLog
from orchestrator.runs.history import read_history
from orchestrator.storage.store import Storage

# wandb leaves its own sockets and files to the garbage collector
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

METRICS = {
    "train/loss",
    "train/loss_clm",
    "train/loss_mlm",
    "val/loss_clm",
    "val/loss_mlm",
    "val/perplexity",
    "val/bits_per_byte",
    "val/mlm_accuracy",
    "optimizer/lr",
    "optimizer/grad_norm",
    "throughput/tokens_per_second",
    "throughput/mfu",
    "throughput/step_seconds",
    "throughput/data_wait_fraction",
    "progress/step",
    "progress/tokens",
    "checkpoint/stall_seconds",
    "memory/peak_bytes",
    "goodput/fraction",
    "faults/restarts",
    "faults/skipped_steps",
    "faults/rollbacks",
}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage root after a whole run, tracked offline."""
    root = tmp_path_factory.mktemp("trained") / "outputs"
    assert main(arguments(text, root, "run.name=tiny", "tracking.mode=offline")) == 0
    return root


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "outputs")


def test_metrics_have_the_names_of_the_design(trained: Path) -> None:
    metrics = json.loads((trained / "runs/tiny/metrics.json").read_text())
    assert metrics.keys() == METRICS
    assert metrics["progress/step"] == 20
    assert metrics["progress/tokens"] == 20 * 8 * 32
    assert metrics["val/loss_clm"] < 5.4  # it began at log(263) = 5.57


def test_run_interrupted_after_its_last_checkpoint_has_all_its_metrics(copied: Path, text: Path) -> None:
    run = copied / "runs/tiny"
    before = json.loads((run / "metrics.json").read_text())
    go_back(run, 20)
    assert main(arguments(text, copied, "run.name=tiny", "tracking.mode=offline")) == 0
    after = json.loads((run / "metrics.json").read_text())
    assert after.keys() == METRICS
    same = [name for name in before if name.startswith(("train/", "val/", "optimizer/", "progress/"))]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert after["throughput/tokens_per_second"] == pytest.approx(before["throughput/tokens_per_second"], rel=0.9)


def test_finished_run_is_listed_with_its_figures(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", f"storage.root={trained}"]) == 0
    metrics = json.loads((trained / "runs/tiny/metrics.json").read_text())
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:4] == ["tiny", "done", "20/20", f"{metrics['train/loss']:.4f}"]
    assert float(row[4]) == pytest.approx(100 * metrics["goodput/fraction"], abs=0.06)


def test_checkpoints_report_the_loss_of_their_step(trained: Path) -> None:
    events = EventLog(Storage(str(trained)), "runs/tiny").read("checkpoint")
    losses = {event["step"]: event["loss"] for event in events}
    assert losses.keys() == {10, 20}
    assert losses[20] == json.loads((trained / "runs/tiny/metrics.json").read_text())["train/loss"]


def test_what_was_asked_is_kept_and_can_be_read_again(trained: Path) -> None:
    asked = yaml.safe_load((trained / "runs/tiny/config.yaml").read_text())
    recipe = json.loads((trained / "runs/tiny/recipe.json").read_text())
    assert asked["model"]["hidden_dim"] == recipe["model"]["hidden_dim"] == 32
    assert "cluster" not in recipe
    assert (trained / recipe["data"] / "COMMITTED").is_file()


def test_w_and_b_has_one_offline_run(trained: Path) -> None:
    folders = list((trained / "runs/tiny/wandb").glob("offline-run-*"))
    identity = json.loads((trained / "runs/tiny/run.json").read_text())
    assert [folder.name.rpartition("-")[2] for folder in folders] == [identity["wandb_run_id"]]


def test_w_and_b_has_every_figure_that_a_report_draws_of_the_run(trained: Path) -> None:
    (file,) = (trained / "runs/tiny/wandb").glob("offline-run-*/*.wandb")
    logged = {name for row in history_of(read_records(file)) for name in row}
    kept = {name for entry in read_history(Storage(str(trained)), "tiny") for name in entry.metrics}
    assert {name for panel in panels(kept) for name in panel.metrics} <= logged
    assert {"train/loss", "val/loss_clm", "optimizer/lr"} <= kept


def test_w_and_b_links_the_data_as_input_and_the_model_as_output(trained: Path) -> None:
    (file,) = (trained / "runs/tiny/wandb").glob("offline-run-*/*.wandb")
    logged = [record.artifact for record in artifact_records(read_records(file))]
    linked = {one.type: one for one in logged if one.type != "run_table"}  # the table of samples is W&B's own
    assert {kind: (one.name, one.use_after_commit, one.user_created) for kind, one in linked.items()} == {
        "dataset": (next((trained / "data").iterdir()).name, True, True),
        "model": ("tiny", False, False),
    }
    for kind, place in (("dataset", next((trained / "data").iterdir())), ("model", trained / "runs/tiny/model")):
        metadata, digest = json.loads(linked[kind].metadata), (place / "COMMITTED").read_text().strip()
        assert metadata["manifest_xxh3_128"] == digest
        assert metadata["num_bytes"] == sum(
            entry["num_bytes"] for entry in json.loads((place / "manifest.json").read_text())["files"].values()
        )
        refs = {entry.path: entry.ref for entry in linked[kind].manifest.contents}
        assert refs[f"{digest}/manifest.json"] == (place / "manifest.json").as_uri()


def test_model_card_has_the_figures_of_the_run(trained: Path) -> None:
    card, metrics = (trained / "runs/tiny" / name for name in ("model/README.md", "metrics.json"))
    shown = re.findall(r"\| ([\d.e+-]+) \| `((?:val|train)/\w+)` \|", card.read_text())
    final = json.loads(metrics.read_text()).items()
    expected = {name: f"{value:.4g}" for name, value in final if name.startswith(("val/", "train/"))}
    assert len(expected) == 8
    assert {name: value for value, name in shown} == expected


def test_export_of_a_finished_run_finds_its_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run.name=tiny", f"storage.root={trained}"]) == 0
    said = capsys.readouterr().out
    assert said == f"model: {trained}/runs/tiny/model holds it already (step 20); nothing was written\n"


def test_transformers_opens_the_model_with_equal_logits(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orchestrator.artifacts.models import load_model

    folder = trained / "runs/tiny/model"
    ours, theirs = load_model(str(folder)), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([ours.tokenizer.encode("the quick brown fox")])
    assert AutoTokenizer.from_pretrained(folder)("the quick brown fox").input_ids == ids[0].tolist()
    with torch.no_grad():
        found = ours.model.head.logits(ours.model(ids))
        torch.testing.assert_close(found, theirs(ids).logits, rtol=0, atol=1e-4)


def test_the_same_command_again_trains_nothing_and_shows_the_results(
    text: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert main(arguments(text, copied, "run.name=tiny", "tracking.mode=offline")) == 0
    said = capsys.readouterr().out
    assert "Results of tiny" in said
    assert "step" not in said.partition("Results")[0]
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_an_interrupted_run_goes_on_where_its_checkpoint_is(
    text: Path, copied: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied / "runs/tiny"
    go_back(run, 10)
    assert main(arguments(text, copied, "run.name=tiny", "tracking.mode=disabled")) == 0
    said = capsys.readouterr().out
    assert "continues from the checkpoint after step 10" in said
    assert re.findall(r"step +(\d+)/20  loss", said) == [str(step) for step in range(11, 21)]
    for folder in (copied, trained):
        assert (folder / "runs/tiny/model/model.safetensors").is_file()
    assert (run / "model/model.safetensors").read_bytes() == (
        trained / "runs/tiny/model/model.safetensors"
    ).read_bytes()


def test_another_recipe_under_the_same_name_is_refused(
    text: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(text, copied, "run.name=tiny", "optimizer.learning_rate=0.5")) == 2
    said = capsys.readouterr().err
    assert "run.name=tiny: a run of this name was begun with other settings" in said
    assert "optimizer.learning_rate: was 0.001, now 0.5" in said


def test_a_run_without_a_name_is_continued_by_the_same_command(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(arguments(text, tmp_path, "training.num_steps=2", "tracking.mode=disabled")) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_prepare_says_where_the_data_is_and_pretrain_finds_it(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [
        "data=files",
        f"data.path={text}",
        "data.split=position",
        "data.val_fraction=0.1",
        "tokenizer=byte",
        f"storage.root={tmp_path}",
    ]
    assert main(["prepare", *data]) == 0
    said = capsys.readouterr().out
    assert re.search(r"prepared .* tokens in ", said)
    (folder,) = (tmp_path / "data").iterdir()
    assert f"data: {folder}" in said
    assert main(arguments(text, tmp_path, "training.num_steps=2", "tracking.mode=disabled")) == 0
    assert "prepared" not in capsys.readouterr().out
    assert list((tmp_path / "data").iterdir()) == [folder]


def test_evaluation_of_the_held_out_text_agrees_with_the_last_validation(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained / "runs/tiny/model"
    assert main(["evaluate", f"model.path={model}", f"storage.root={trained}", "max_sequences=16"]) == 0
    said = capsys.readouterr().out
    metrics = json.loads((trained / "runs/tiny/metrics.json").read_text())
    (bits,) = re.findall(r"this model *│ *([\d.]+)", said)
    assert float(bits) == pytest.approx(metrics["val/bits_per_byte"], abs=1e-4)
    assert "gzip -9" in said
    assert "xz -9" in said
    assert "val/mlm_accuracy" in said
    kept = json.loads((model / "evaluation.json").read_text())["text"].values()
    (entry,) = [entry for entry in kept if entry["settings"]["max_sequences"] == 16]
    assert entry["metrics"]["val/bits_per_byte"] == pytest.approx(metrics["val/bits_per_byte"], abs=1e-4)
    assert entry["settings"]["data"].startswith("data/")


FIGURE = r"│ *([\d.,]+)( %)? │ (val/\w+)"


def figures_of(said: str) -> dict[str, float]:
    """Return the figures that `evaluate` has printed, by metric name."""
    found = re.findall(FIGURE, said)
    return {name: float(value.replace(",", "")) / (100 if percent else 1) for value, percent, name in found}


def test_evaluation_reads_text_as_the_recipe_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        json.dumps({"text": f"document {number}: the fox {'and the dog ' * (number % 3)}"}) for number in range(400)
    ]
    (tmp_path / "docs.jsonl").write_text("\n".join(rows))
    words = ["training.attention_scope=document", "training.precision=bf16", "objective.mlm_shift=true", "run.seed=7"]
    words.append("training.position_scope=document")
    sizes = ["training.num_steps=4", "training.val_batches=4", "optimizer.warmup_steps=1", "run.name=apart"]
    assert main(arguments(tmp_path / "docs.jsonl", tmp_path, "tracking.mode=disabled", *words, *sizes)) == 0
    metrics = json.loads((tmp_path / "runs/apart/metrics.json").read_text())

    def evaluated(model: Path) -> dict[str, float]:
        capsys.readouterr()
        assert main(["evaluate", f"model.path={model}", f"storage.root={tmp_path}", "max_sequences=32"]) == 0
        return figures_of(capsys.readouterr().out)

    found = evaluated(tmp_path / "runs/apart/model")
    assert found.keys() == {name for name in metrics if name.startswith("val/")}
    for name, value in found.items():
        assert value == pytest.approx(metrics[name], abs={"val/perplexity": 6e-3}.get(name, 6e-4)), name
    other = shutil.copytree(tmp_path / "runs/apart/model", tmp_path / "other")
    for file in ("COMMITTED", "manifest.json"):
        (other / file).unlink()
    recipe = json.loads((other / "recipe.json").read_text())
    scopes = {"attention_scope": "sequence", "position_scope": "sequence"}
    for path, value in (
        ("training", {**recipe["training"], **scopes}),
        ("training.position_scope", "sequence"),
        ("objective.mlm_shift", False),
        ("seed", 8),
    ):
        group, _, name = path.rpartition(".")
        changed = {**recipe, name: value} if not group else {**recipe, group: {**recipe[group], name: value}}
        (other / "recipe.json").write_text(json.dumps(changed))
        name = "val/loss_clm" if path.startswith("training") else "val/loss_mlm"
        assert abs(evaluated(other)[name] - metrics[name]) > 2e-4, path


def test_evaluation_of_other_text_prepares_it_with_the_models_tokenizer(
    trained: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"model.path={trained}/runs/tiny/model", f"storage.root={tmp_path}"]
    assert main(["evaluate", *where, "data=files", f"data.path={text}", "part=all"]) == 0
    assert "val/bits_per_byte" in capsys.readouterr().out


def test_evaluation_without_the_models_data_says_what_to_give(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", f"model.path={trained}/runs/tiny/model", f"storage.root={tmp_path / 'none'}"]) == 2
    assert "name a text with data=files data.path=" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_same_seed_gives_the_same_text(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def text_of(*more: str) -> str:
        call = ["generate", f"model.path={trained}/runs/tiny/model", "prompt=the ", "max_new_tokens=16", *more]
        assert main(call) == 0
        return capsys.readouterr().out

    assert text_of("seed=1") == text_of("seed=1") != text_of("seed=2")
    assert text_of("num_sequences=3").count("sample ") == 3
    assert text_of("num_sequences=3", "seed=5") == text_of("num_sequences=3", "seed=5")


def test_greedy_text_is_that_of_transformers(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained / "runs/tiny/model"
    call = ["generate", f"model.path={folder}", "prompt=the quick ", "max_new_tokens=12", "temperature=0"]
    assert main(call) == 0
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("the quick ", return_tensors="pt").input_ids
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert capsys.readouterr().out.rstrip("\n") == tokenizer.decode(expected[0], skip_special_tokens=True)


def test_a_model_that_is_not_there_is_reported(capsys: pytest.CaptureFixture[str], empty_folder: Path) -> None:
    assert main(["generate", "model.path=./nowhere"]) == 2
    assert "model.path=./nowhere: no model there" in capsys.readouterr().err


def write_bad_text(folder: Path) -> None:
    (folder / "short.txt").write_text("hello world, a short text")
    (folder / "broken.txt").write_bytes(b"abc\xff")
    (folder / "empty.txt").touch()
    (folder / "rows.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    write_text(folder / "text.txt", 1000)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["data.path=short.txt"], "training.sequence_length=32: the data has 23 tokens, and one sample takes 33"),
        (["data.path=broken.txt"], "broken.txt: byte 3 (0xff) is not UTF-8"),
        (["data.path=empty.txt"], "empty.txt: is empty"),
        (["data.path=rows.jsonl"], "rows.jsonl:2: no field 'text'"),
        (["data.path=nope*.txt"], "nope*.txt: matches no file"),
        (["data.path=text.txt", "model.vocab_size=64"], "model.vocab_size=64: smaller than the tokenizer's 263"),
        (["data.path=text.txt", "training.precision=16"], "training.precision=16: float16 needs a GPU"),
        (["data.path=text.txt", "training.tf32=true"], "training.tf32=true: only GPUs have TF32"),
        (["data.path=text.txt", "cluster.gpus_per_worker=1"], "cluster.gpus_per_worker=1: "),
        (["data.path=text.txt", "training.compile=true"], "training.compile=true: torch.compile needs a C++ compiler"),
        (["data.path=text.txt", "training.head_loss=compiled"], "training.head_loss=compiled: torch.compile needs a"),
        (
            [
                "data.path=text.txt",
                "cluster=ray",
                "cluster.num_workers=4000",
                "strategy=ddp",
                "training.global_batch_size=4000",
            ],
            "cluster.num_workers=4000: the workers need 4000 CPUs, and the cluster has ",
        ),
        (["data.path=text.txt", "tokenizer=file", "tokenizer.path=broken.txt"], "tokenizer.path=broken.txt: not a"),
        (["data.path=text.txt", "storage.root=text.txt/below"], "a file stands where a folder should be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message_and_writes_nothing(
    overrides: list[str],
    part: str,
    empty_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    write_bad_text(empty_folder)
    before = set(empty_folder.rglob("*"))
    code = main(arguments(Path("text.txt"), Path("outputs"), *overrides))
    said = capsys.readouterr().err
    assert code == (1 if "below" in overrides[-1] else 2)
    assert part in said
    assert "Traceback" not in said
    assert set(empty_folder.rglob("*")) == before


def test_data_prepared_before_is_checked_too(text: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(text, copied, "run.name=other", "model.vocab_size=64")) == 2
    assert "smaller than the tokenizer's" in capsys.readouterr().err
    assert not (copied / "runs/other").exists()


def test_run_continued_with_more_steps_is_the_run_that_had_them_from_the_start(text: Path, tmp_path: Path) -> None:
    constant = ("optimizer.schedule=constant", "objective=clm", "tracking.mode=disabled")
    assert main(arguments(text, tmp_path, "run.name=longer", *constant, "training.num_steps=10")) == 0
    assert main(arguments(text, tmp_path, "run.name=longer", *constant, "training.num_steps=16")) == 0
    assert main(arguments(text, tmp_path, "run.name=whole", *constant, "training.num_steps=16")) == 0
    longer, whole = (json.loads((tmp_path / f"runs/{name}/metrics.json").read_bytes()) for name in ("longer", "whole"))
    for name in ("progress/step", "train/loss", "val/loss_clm", "optimizer/lr"):
        assert longer[name] == pytest.approx(whole[name], rel=1e-6), name
    weights = [(tmp_path / f"runs/{name}/model/model.safetensors").read_bytes() for name in ("longer", "whole")]
    assert weights[0] == weights[1]


def test_run_is_not_continued_with_steps_that_would_have_changed_those_done(
    copied: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = arguments(text, copied, "run.name=tiny", "tracking.mode=offline", "training.num_steps=30")
    recipe = (copied / "runs/tiny/recipe.json").read_bytes()
    assert main(more) == 2
    said = capsys.readouterr().err
    assert "training.num_steps: was 20, now 30\n  it has done 20 steps, and from step 4 on the learning rate" in said
    assert (copied / "runs/tiny/recipe.json").read_bytes() == recipe


@pytest.mark.parametrize("content", [b"", b'{"files": {'], ids=["empty", "half"])
@pytest.mark.parametrize("file", ["manifest.json", "COMMITTED", "recipe.json", "config.json"])
def test_model_with_a_damaged_file_is_named_with_the_remedy_and_not_read(
    file: str, content: bytes, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copied / "runs/tiny/model"
    (model / file).write_bytes(content)
    assert main(["generate", f"model.path={model}", "prompt=the"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: model.path={model}: ")
    assert file in said.err
    assert f"remove {model} and its run's metrics.json" in said.err


def test_damaged_model_is_written_anew_by_the_command_that_trained_it(trained: Path, copied: Path, text: Path) -> None:
    shutil.rmtree(copied / "runs/tiny/model")
    (copied / "runs/tiny/metrics.json").unlink()
    assert main(arguments(text, copied, "run.name=tiny", "tracking.mode=offline")) == 0
    weights = "runs/tiny/model/model.safetensors"
    assert (copied / weights).read_bytes() == (trained / weights).read_bytes()
