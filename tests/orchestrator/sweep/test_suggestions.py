"""Trials that Optuna suggests: better than drawn ones, recorded before they start, and the same after a kill."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from sweeps import RATES, FakeTraining, SmallSweep

from orchestrator.cli import trials
from orchestrator.configuration.sweep import SweepConfig
from orchestrator.errors import ConfigError, DamagedFileError, TrialError
from orchestrator.pipeline import children
from orchestrator.sweep.suggestions import Suggestions, Tried
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.tpe import Tpe

TEXTS = (RATES, "model.hidden_dim=choice(32,64,128)", "training.num_steps=range(20,50,10)")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "POLL_SECONDS", 0.02)


class Suggested(SmallSweep):
    """The same, with suggested trials."""

    def __init__(self, folder: Path, num_trials: int = 7) -> None:
        super().__init__(folder, *TEXTS, method="optuna", num_trials=num_trials, num_startup_trials=3)

    def sweep(self) -> Sweep:
        space = trials.space(self.texts, "optuna")
        typical = SmallSweep.composed(self, next(iter(space.corners())))
        suggester = Tpe(space.settings, 0, 3)
        suggestions = Suggestions(space, self.settings.num_trials or 0, suggester, self.composed, typical)
        return replace(super().sweep(), suggestions=suggestions)

    def suggested(self) -> list[Mapping[str, float]]:
        files = sorted((self.folder / "out/sweeps/small/trials").glob("*.json"))
        return [self.record(file.stem)["suggested"] for file in files]


def loss(swept: Mapping[str, str]) -> float:
    """Return a loss with its minimum at 0.001 and 64, on which the number of steps has no influence."""
    rate, width = float(swept["optimizer.learning_rate"]), swept["model.hidden_dim"]
    return (math.log10(rate) + 3) ** 2 + {"32": 0.5, "64": 0.0, "128": 1.0}[width]


def test_tpe_comes_nearer_to_the_minimum_than_drawing_does() -> None:
    space = trials.space(("optimizer.learning_rate=tag(log,interval(1e-6,1))", *TEXTS[1:]), "optuna")
    config = SweepConfig.model_validate({"method": "random", "num_trials": 30})
    suggested, drawn = [], []
    for seed in range(5):
        drawn.append([loss(trial.swept) for trial in space.trials(config.model_copy(update={"seed": seed}))])
        tried: list[Tried] = []
        for number in range(30):
            values = Tpe(space.settings, seed, 10).suggest(number, tried)
            made = space.trial(number, [values[one.name] for one in space.settings])
            tried.append(Tried(values, False, loss(made.swept)))
        suggested.append([one.score for one in tried if one.score is not None])
    assert median(map(min, suggested)) < median(map(min, drawn)) / 2
    for found, others in zip(suggested, drawn, strict=True):
        assert median(found[15:]) < median(others[15:])


def test_a_suggestion_depends_on_what_is_recorded_alone() -> None:
    space = trials.space(TEXTS, "optuna")
    tried = [
        Tried(Tpe(space.settings, 0, 3).suggest(at, []), at == 5, None if at > 4 else float(at)) for at in range(7)
    ]
    first = Tpe(space.settings, 0, 3)
    first.suggest(3, tried[:3])
    assert first.suggest(7, tried) == Tpe(space.settings, 0, 3).suggest(7, tried)
    assert first.suggest(7, tried) != first.suggest(8, tried)
    assert first.suggest(7, tried) != Tpe(space.settings, 1, 3).suggest(7, tried)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Mapping[str, float]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "POLL_SECONDS", 0.02)
        small = Suggested(tmp_path_factory.mktemp("undisturbed"))
        assert small.run(cpus=1.0) == [f"{number:05d}" for number in range(7)]
    return small.suggested()


@pytest.mark.parametrize("at", [0, 4, 6])
def test_a_killed_search_goes_on_with_the_same_suggestions(
    at: int, undisturbed: list[Mapping[str, float]], tmp_path: Path
) -> None:
    small = Suggested(tmp_path)
    name = f"{at:05d}"

    def be_killed(child: FakeTraining) -> int:
        assert small.record(name)["suggested"] == undisturbed[at], "a suggestion is recorded before its trial starts"
        return 143 if child.notified.wait(60) else 1

    small.before = {name: be_killed}
    driver = small.driver(cpus=1.0)

    def interrupt(progress: object) -> None:
        if name in small.started:
            driver._show = lambda _: None
            raise SystemExit(143)

    driver._show = interrupt
    with pytest.raises(SystemExit):
        driver.run()
    small.before = {}
    assert small.run(cpus=1.0) == [f"{number:05d}" for number in range(at, 7)]
    assert small.suggested() == undisturbed


def test_more_suggestions_later_leave_the_first_ones_as_they_are(
    undisturbed: list[Mapping[str, float]], tmp_path: Path
) -> None:
    Suggested(tmp_path, num_trials=5).run(cpus=1.0)
    more = Suggested(tmp_path)
    assert more.run(cpus=1.0) == ["00005", "00006"]
    assert more.suggested() == undisturbed


def test_values_that_do_not_go_together_fail_their_trial_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = Suggested(tmp_path)
    composed = small.composed

    def refuse_the_third(trial: Any) -> Any:
        if trial.number == 2:
            raise ConfigError("these do not go together")
        return composed(trial)

    monkeypatch.setattr(small, "composed", refuse_the_third)
    for _ in range(2):
        with pytest.raises(TrialError, match="trial 00002 failed: these do not go together"):
            small.run(cpus=1.0)
    assert small.record("00002")["state"] == "failed"
    assert {small.record(f"{number:05d}")["state"] for number in (0, 1, 3, 4, 5, 6)} == {"done"}


def test_a_lost_suggestion_is_not_replaced_by_another_in_silence(tmp_path: Path) -> None:
    small = Suggested(tmp_path, num_trials=2)
    small.run(cpus=1.0)
    (tmp_path / "out/sweeps/small/trials/00001.json").write_text("{")
    with pytest.raises(DamagedFileError, match="remove it and runs/small/00001"):
        small.run(cpus=1.0)
