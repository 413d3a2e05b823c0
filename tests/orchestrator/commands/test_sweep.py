"""`--multirun sweep=METHOD`: the trials that are drawn, and mistakes that are found before anything starts."""

import json
import math
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sweeps import RATES, SmallSweep

from orchestrator.cli import main, trials
from orchestrator.commands import sweep as command
from orchestrator.configuration.sweep import SweepConfig
from orchestrator.errors import ConfigError
from orchestrator.pipeline import children
from orchestrator.pipeline.admission import Ledger, Resources
from orchestrator.pipeline.where import Place

WORDS = shlex.split(
    "pretrain --multirun sweep=random sweep.num_trials=3 sweep.name=small data=files data.path=text.txt"
)
SWEPT = [RATES, "model.hidden_dim=32,64"]


@pytest.fixture
def fake(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> SmallSweep:
    """Run the children of any sweep as functions, in an empty folder."""
    (empty_folder / "text.txt").write_text("text")
    fake = SmallSweep(empty_folder)
    fake.storage = type(fake.storage)(str(empty_folder / "outputs"))

    @contextmanager
    def place(config: Any) -> Iterator[Place]:
        yield Place("this machine", Ledger(Resources(2.0)), fake.start)

    monkeypatch.setattr(command, "place", place)
    monkeypatch.setattr(children, "POLL_SECONDS", 0.02)
    return fake


def drawn(*texts: str, **settings: Any) -> list[tuple[str, ...]]:
    config = SweepConfig.model_validate({"method": "random", "num_trials": 50, **settings})
    return [tuple(trial.swept.values()) for trial in trials.space(texts, config.method).trials(config)]


def test_a_sweep_runs_its_trials_and_says_and_writes_the_best(
    fake: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, *SWEPT]) == 0
    said = capsys.readouterr().out
    best = json.loads(Path("outputs/sweeps/small/best.json").read_text())
    assert sorted(fake.started) == ["00000", "00001", "00002"]
    rates = {trial: float(_swept(fake, trial)) for trial in fake.started}
    nearest = min(rates, key=lambda trial: abs(math.log10(rates[trial]) + 3))
    assert best["trial"] == nearest
    assert best["swept"]["optimizer.learning_rate"] == _swept(fake, nearest)
    assert f"best: trial {nearest} with val/loss_clm" in said
    assert "rank correlation with val/loss_clm over 3 trials: optimizer.learning_rate " in said
    fake.started.clear()
    assert main([*WORDS, *SWEPT]) == 0
    assert fake.started == []


def _swept(fake: SmallSweep, trial: str) -> str:
    (order,) = (order for order in fake.orders if order.path.endswith(trial))
    (rate,) = (word for word in order.words if word.startswith("optimizer.learning_rate="))
    return rate.partition("=")[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer.learning_rate=0.1,-1"], "optimizer.learning_rate=-1: must be above 0"),
        (["run.seed=1,2", "model.hiden_dim=3"], "did you mean model.hidden_dim"),
        (["model=tiny,gpt3"], "model=gpt3: no such option"),
        (["run.seed=1,2", "sweep.num_trial=3"], "did you mean sweep.num_trials"),
        (["run.seed=1,2", "sweep.num_trials=0"], "sweep.num_trials=0: must be above 0"),
        (["run.seed=1,2", "sweep=tpe"], "sweep=tpe: no such option"),
        (["run.seed=1,2", "sweep=grid"], "sweep.num_trials=3: is for sweep=random and sweep=asha and sweep=optuna"),
        (["run.seed=1,2", "sweep=radnom"], "sweep=radnom: no such option; did you mean sweep=random?"),
        (["run.seed=1,2", "sweep.seed=1,2"], "sweep.seed=1,2: one value is expected"),
        (["run.seed=1,2", "sweep.grace_period=5"], "sweep.grace_period=5: is for sweep=asha"),
        (["run.seed=1,2", "sweep=null"], "sweep=null: no such option"),
        (
            ["run.seed=1,2", "sweep.metric=val/accuracy"],
            "sweep.metric=val/accuracy: is not measured; choose val/loss_clm",
        ),
        (["run.name=a,b"], "run.name: a sweep names its runs; set sweep.name instead"),
        (["storage.root=a,b"], "storage.root: must be the same in all trials"),
        (["run.seed=1,2", "cluster.cpus_per_worker=64"], "trial 00000: needs 64 CPUs, and this machine has 2 CPUs"),
        (["run.seed=1,2", "cluster=torchrun"], "a sweep needs cluster=local or cluster=ray"),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    words: list[str], said: str, fake: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, *words]) == 2
    assert said in capsys.readouterr().err
    assert fake.started == []
    assert not Path("outputs").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run.seed=1", "nothing is swept"),
        ("run.seed=shuffle(1,2)", "gives another order each time"),
        ("optimizer.learning_rate=interval(2,1)", "must go from a lower to a higher value"),
        ("optimizer.learning_rate=tag(log,interval(0,1))", "both above 0 for tag"),
        ("run.seed=range(3,0)", "has no value"),
        ("model=glob(*)", "list the options"),
    ],
)
def test_values_that_cannot_be_drawn_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        drawn(text)


@pytest.mark.parametrize("words", [["generate", "model.path=x", "seed=1,2"], ["plan", "run.seed=1,2"]])
def test_a_command_that_does_not_train_has_no_sweep(
    words: list[str], fake: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--multirun", "sweep=grid"]) == 2
    assert f"sweep=grid: is for pretrain and finetune; leave it out with {words[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["sweep=random"], ["sweep.seed=3"], ["sweep=grid", "sweep.metric=x"], ["+sweep.a=1"]]
)
def test_a_sweep_without_multirun_is_one_mistake(
    words: list[str], fake: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", *words]) == 2
    assert capsys.readouterr().err == f"error: {words[0]}: is for several runs; add --multirun\n"


def test_a_sweep_in_an_experiment_is_not_taken_for_a_single_run_in_silence(
    fake: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own/experiment").mkdir(parents=True)
    head = "# @package _global_\n"
    Path("own/experiment/searched.yaml").write_text(head + "sweep: {method: random, num_trials: 3}\n")
    words = ["pretrain", "--config-dir", "own", "+experiment=searched"]
    assert main(words) == 2
    assert capsys.readouterr().err == "error: sweep: is for several runs; add --multirun\n"
    assert main([*words, "--multirun", "run.seed=1,2"]) == 2
    assert "sweep: is for several runs; name its method on the command line" in capsys.readouterr().err


OPTUNA = ["sweep=optuna", "sweep.num_startup_trials=2"]


def test_a_suggested_sweep_goes_on_with_more_trials(fake: SmallSweep) -> None:
    words = [word for word in WORDS if word != "sweep=random"]
    assert main([*words, *OPTUNA, *SWEPT]) == 0
    assert sorted(fake.started) == ["00000", "00001", "00002"]
    fake.started.clear()
    assert main([*words, *OPTUNA, *SWEPT, "sweep.num_trials=4"]) == 0
    assert fake.started == ["00003"]


def test_a_mistake_in_any_value_that_may_be_suggested_is_found_before_anything_starts(
    fake: SmallSweep, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in WORDS if word != "sweep=random"]
    wrong = ["model.hidden_dim=choice(32,64,-1)", "optimizer.learning_rate=interval(-1,1)"]
    assert main([*words, *OPTUNA, *wrong]) == 2
    said = capsys.readouterr().err
    assert "model.hidden_dim=-1: must be above 0" in said
    assert "optimizer.learning_rate=-1.0: must be above 0" in said
    assert fake.started == []
    assert not Path("outputs").exists()


def test_optuna_is_asked_for_by_name_where_it_is_missing(
    fake: SmallSweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    words = [word for word in WORDS if word != "sweep=random"]
    assert main([*words, *OPTUNA, *SWEPT]) == 2
    rule = "sweep=optuna: needs the package optuna; pip install 'gpt-orchestrator[optuna]'"
    assert capsys.readouterr().err == f"error: {rule}\n"
    assert not Path("outputs").exists()


def test_a_sweep_without_a_method_is_refused(fake: SmallSweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word for word in [*WORDS, *SWEPT] if word != "sweep=random"]) == 2
    assert "sweep: which kind is missing; add sweep=random" in capsys.readouterr().err


def test_an_option_of_the_users_own_is_a_sweep(fake: SmallSweep) -> None:
    Path("own/sweep").mkdir(parents=True)
    Path("own/sweep/mine.yaml").write_text("defaults: [random]\nnum_trials: 2\nname: mine\n")
    words = [word for word in WORDS if not word.startswith("sweep")]
    assert main([*words, "--config-dir", "own", "sweep=mine", *SWEPT]) == 0
    assert sorted(fake.started) == ["00000", "00001"]
    assert Path("outputs/sweeps/mine/best.json").is_file()


def test_help_lists_the_methods_of_a_sweep_and_their_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "sweep=asha", "--help"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\nsweep +asha .*\n(.*\n)* +optuna .*\n(.*\n)* +random ", said)
    assert re.search(r"sweep.reduction_factor +3.0 ", said)


def test_another_sweep_of_the_same_name_is_refused(fake: SmallSweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, *SWEPT]) == 0
    fake.started.clear()
    assert main([*WORDS, *SWEPT, "training.num_steps=7"]) == 2
    assert "sweep.name=small: is another sweep (overrides was" in capsys.readouterr().err
    assert fake.started == []
    assert main([*WORDS, *SWEPT, "sweep.num_trials=4"]) == 0
    assert fake.started == ["00003"]


def test_an_unnamed_sweep_is_named_by_what_it_is(fake: SmallSweep) -> None:
    unnamed = [word for word in WORDS if not word.startswith("sweep.name")]
    for words in (SWEPT, SWEPT, [*SWEPT, "run.seed=7"]):
        assert main([*unnamed, *words, "sweep.num_trials=1"]) == 0
    assert len(list(Path("outputs/sweeps").iterdir())) == 2


def test_a_trial_is_a_function_of_seed_and_number() -> None:
    assert drawn(RATES, "run.seed=1,2") == drawn(RATES, "run.seed=1,2")
    assert drawn(RATES, num_trials=60)[:50] == drawn(RATES)
    assert drawn(RATES, seed=1) != drawn(RATES)
    assert [rate for rate, _ in drawn(RATES, "run.seed=1,2")] == [rate for (rate,) in drawn(RATES)]


def test_values_are_drawn_from_the_whole_of_each_range() -> None:
    rates = [float(rate) for (rate,) in drawn(RATES)]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 15 <= sum(rate < 1e-3 for rate in rates) <= 35, "half of them lie below the middle of the logarithm"
    plain = [float(rate) for (rate,) in drawn("optimizer.learning_rate=interval(1e-4,1e-2)")]
    assert sum(rate < 1e-3 for rate in plain) <= 12
    assert {value for (value,) in drawn("run.seed=int(interval(1,3))")} == {"1", "2", "3"}
    assert {value for (value,) in drawn("run.seed=range(1,10,3)")} == {"1", "4", "7"}
    assert {value for (value,) in drawn("a.b=range(0,0.3,0.1)")} == {"0.0", "0.1", "0.2"}
    assert {value for (value,) in drawn("model=choice(tiny,gpt2_124m)")} == {"tiny", "gpt2_124m"}


def test_a_grid_has_every_combination_in_the_order_of_the_words() -> None:
    settings = {"method": "grid", "num_trials": None}
    assert drawn("a=1,2", "b=x", "c=null,'p, q'", **settings) == [
        (first, second) for first in ("1", "2") for second in ("null", "'p, q'")
    ]
    with pytest.raises(ConfigError, match="an interval has no list of values"):
        drawn("a=interval(1,2)", **settings)
    with pytest.raises(ConfigError, match="these are 1,000,000 runs"):
        drawn("a=range(1000)", "b=range(1000)", **settings)
