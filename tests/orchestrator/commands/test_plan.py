"""`orchestrator plan`: what it shows, and what it does not show because it is not known."""

import json
from pathlib import Path

import pytest

from orchestrator.cli import main

GPUS = ("device=h100", "cluster.num_workers=8", "training.global_batch_size=64", "training.precision=bf16")


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["plan", *words]) == code
    out, err = capsys.readouterr()
    return err if code else out


def test_plan_of_a_published_shape_fits_into_eighty_columns_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = said(
        capsys,
        *("pretrain", "model=llama3_8b", "strategy=zero3", "plan.vocab_size=128256", "plan.price_per_hour=2.5"),
        *(*GPUS, "training.micro_batch_size=1", "plan.store_gigabytes_per_second=5"),
    )
    assert "8,030,261,248" in shown  # as its authors say
    tables = [line for line in shown.splitlines() if not line.startswith(("note:", "not "))]
    assert max(map(len, tables)) <= 80
    assert "…" not in shown
    for figure in ("zero3*", "tokens per second", "device hours", "cost at 2.5 an hour", "goodput at most"):
        assert figure in shown
    assert list(tmp_path.iterdir()) == []


def test_training_overrides_are_taken_unchanged_and_pretrain_is_meant_where_none_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("+experiment=gpt2_124m", "data.path=text.txt", "device=a100_80gb")
    assert said(capsys, "pretrain", *words) == said(capsys, *words)


def test_nothing_is_shown_of_time_and_fit_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, "pretrain", "cluster.num_workers=2", "strategy=ddp")
    assert "not known: the device" in shown
    assert "tokens per second" not in shown
    assert "checkpoint" in shown


@pytest.mark.parametrize("words", [("device=b200",), ("training.precision=32",), ("strategy=zero2_offload",)])
def test_no_speed_is_shown_that_no_published_run_supports(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    fixed = ("pretrain", *GPUS, "strategy=ddp")
    assert "tokens per second" not in said(capsys, *fixed, *words)
    assert "tokens per second" in said(capsys, *fixed, *words, "plan.utilization=0.4")


def test_speeds_of_compiled_blocks_reach_from_launches_that_are_hidden_to_those_that_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("pretrain", "model=gpt2_124m", "device=h200", "training.precision=bf16", "training.sequence_length=1024")
    words += ("plan.vocab_size=50257", "training.micro_batch_size=12", "training.global_batch_size=96")
    ranges = []
    for more in ((), ("training.compile=true",)):
        (line, *_) = (line for line in said(capsys, *words, *more).splitlines() if "tokens per second " in line)
        ranges.append([int(word.removesuffix("k")) for word in line.split() if word.endswith("k")])
    (low, high), (compiled_low, compiled_high) = ranges
    assert compiled_low == low
    assert high < 302 < 345 < compiled_high  # thousands, as one measured it, compiled (LOG.md, 2026-11-27)


def test_tf32_has_a_peak_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("pretrain", *GPUS[:-1], "training.precision=32", "strategy=ddp", "plan.utilization=0.4")
    rates = []
    for more in ((), ("training.tf32=true",)):
        line = next(line for line in said(capsys, *words, *more).splitlines() if "tokens per second" in line)
        rates.append(float(line.split()[-2].removesuffix("M")))
    assert rates[1] / rates[0] == pytest.approx(494.7 / 67, rel=1e-2)


@pytest.mark.parametrize(
    ("word", "text"),
    [("training.tf32=true", "only GPUs have TF32"), ("training.precision=16", "float16 needs a GPU")],
)
def test_what_processors_cannot_compute_is_refused(capsys: pytest.CaptureFixture[str], word: str, text: str) -> None:
    assert f"{word}: {text}" in said(capsys, "pretrain", "device=cpu", word, code=2)


def test_bfloat16_of_processors_is_said_to_need_instructions(capsys: pytest.CaptureFixture[str]) -> None:
    note, words = "takes a processor with AVX-512 BF16 or AMX", ("pretrain", "training.precision=bf16")
    assert note in " ".join(said(capsys, *words, "device=cpu").split())
    assert note not in " ".join(said(capsys, *words, "device=h100").split())


def test_no_time_and_cost_of_a_strategy_that_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, *GPUS, "model=gpt3_175b", "strategy=ddp", "training.sequence_length=2048")
    assert "device hours" not in shown
    assert "does not fit" in shown


def test_where_nothing_fits_what_would_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("model=llama3_8b", "strategy=auto", "training.micro_batch_size=1", "device.memory_gigabytes=10", *GPUS)
    shown = said(capsys, *words)
    number = int(shown.partition("what would fit: cluster.num_workers=")[2].split()[0])
    assert number in (16, 32, 64)
    assert "the simplest that fits" in said(capsys, *words, f"cluster.num_workers={number}")


def test_a_strategy_needs_room_for_what_is_not_counted(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("model=gpt2_124m", "training.sequence_length=1024", "strategy=zero3_offload", "device=l4")
    shown = said(capsys, *words, "training.global_batch_size=34")
    assert "of which tensors can take 22.1" in shown
    assert "23.7!" in shown


def test_a_link_that_is_not_known_is_not_taken_for_a_device_that_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    shown = said(capsys, *GPUS, "strategy=ddp", "cluster.num_workers=16")
    assert "not known: the link between nodes" in shown
    assert "no published run" not in shown
    assert "tokens per second" not in shown


def test_the_bound_of_a_vocabulary_is_named_and_that_of_characters_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "reckoned with tokenizer.vocab_size=8192" in said(capsys, "pretrain")
    assert "plan.vocab_size" in said(capsys, "pretrain", "tokenizer=char", code=2)
    assert "note: reckoned" not in said(capsys, "pretrain", "tokenizer=byte")


def test_auto_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert "strategy=auto: ddp, the simplest that fits" in said(capsys, *GPUS, "strategy=auto", "model=gpt2_124m")


def test_finetuning_takes_the_shape_from_the_models_settings(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = {
        "model_type": "gpt2",
        "vocab_size": 1000,
        "n_positions": 512,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    words = ("finetune", f"model.path={tmp_path}", "task=dialogue", "data=files", "data.path=x.jsonl")
    shown = said(capsys, *words, "method=lora", "device=l4")
    assert "adapters" in shown
    assert "follows from the rows" in shown
    assert said(capsys, "finetune", "task=dialogue", "model.path=nowhere/at/all", code=2).startswith(
        "error: model.path"
    )


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("pretrain", "device=h1000"), "device=h100"),
        (("pretrain", "model.nope=1", "training.num_steps=x"), "2 mistakes"),
        (("pretrain", "plan.price=3"), "price_per_hour"),
        (
            ("pretrain", "strategy=zero2", "strategy.deepspeed.zero_optimization.reduce_bucket_size=many"),
            "number of elements",
        ),
        (("prepare",), "neither a field nor a group"),
        (("finetune", "task=dialogue"), "model.path"),
        (("pretrain", "training.sequence_length=100000"), "model.max_positions"),
    ],
)
def test_nonsense_is_one_message_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], hint: str
) -> None:
    message = said(capsys, *words, code=2)
    assert message.startswith("error: ")
    assert hint in message
    assert "Traceback" not in message
