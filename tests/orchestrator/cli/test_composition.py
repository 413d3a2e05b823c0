"""Compositions that share their files give what Hydra alone composes, and read the files once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from orchestrator.cli import trials
from orchestrator.cli.composition import composed, composed_at_once
from orchestrator.cli.flags import read_flags
from orchestrator.cli.hydra_errors import first_line
from orchestrator.cli.options import options_of
from orchestrator.cli.session import Composer, Session, hydra_of
from orchestrator.cli.sweep import parsed
from orchestrator.configuration.sweep import SweepConfig

WORDS = ("data=files", "data.path=text.txt", "training.num_steps=20")
SWEEPS = {
    "plain fields": ("optimizer.learning_rate=interval(1e-4,1e-2)", "run.seed=1,2,3"),
    "groups": ("model=tiny,gpt2_124m", "objective=clm,mixed", "model.num_layers=2,4"),
    "lists": ("optimizer.betas=[0.9,0.95],[0.8,0.99]", "tracking.tags=[a,'b, c'],[]", "cluster.num_workers=1,2"),
    "special characters": ("run.name='a b','c=d'", "tracking.project='${x}','é\\\\','(1,2)'", "data.path='a,b','[x]'"),
    "key at package": ("+optimizer@strategy.deepspeed.inner=adamw", "model@model=tiny,gpt2_124m", "run.seed=1,2"),
    "appended": ("+strategy.deepspeed.a.b=1,2", "++strategy.deepspeed.a.c=x,y", "+nope.inner=1,2"),
    "experiment": ("+experiment=quickstart,packages", "training.val_batches=1,2", "strategy=ddp,zero1"),
    "interpolation": ("training.val_batches=${training.log_interval_steps}", "training.log_interval_steps=3,4"),
    "hydra's own": ("tracking.tags=${hydra:overrides.task}", "run.seed=1,2"),
    "groups as values": ("model.num_layers=3", "model={num_layers:2},{num_layers:4}", "optimizer.learning_rate=1,2"),
    "deleted": ("~tracking", "~guard", "~optimizer.betas", "run.seed=1,2"),
    "the same key twice": ("run.seed=1,2", "run.seed=7", "training={num_steps:3}", "training.num_steps=4"),
    "files of the user": ("+experiment=linked", "run.seed=1,2"),
    "files that read hydra's own": ("+experiment=names", "model=tiny,gpt2_124m"),
    "mistakes": ("optimizer.learning_rate.x=1,2", "~nope", "model@nope=tiny,gpt2_124m"),
    "groups that are appended": ("+model=tiny,gpt2_124m", "+faults=kill_rank,nan_loss"),
    "search path": ("hydra.searchpath=[file://far]", "+far=group", "run.seed=1,2"),
}


@pytest.fixture(scope="module")
def hydra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hydra]:
    folder = tmp_path_factory.mktemp("options")
    (folder / "own/experiment").mkdir(parents=True)
    head = "# @package _global_\n"
    linked = "training:\n  val_batches: ${run.seed}\ntracking:\n  project: p${training.val_batches}\n"
    (folder / "own/experiment/linked.yaml").write_text(head + linked)
    (folder / "own/experiment/names.yaml").write_text(head + "tracking:\n  tags: ${hydra:overrides.task}\n")
    (folder / "far/far").mkdir(parents=True)
    (folder / "far/far/group.yaml").write_text("only: here\n")
    with pytest.MonkeyPatch.context() as patch, opened(["--config-dir", str(folder / "own")]) as (hydra, _):
        patch.chdir(folder)
        yield hydra


@contextmanager
def opened(words: Sequence[str] = ()) -> Iterator[tuple[Hydra, Any]]:
    flags = read_flags("pretrain", list(words))
    with hydra_of("pretrain", flags) as hydra:
        yield hydra, flags


def each_trial(texts: Sequence[str], number: int) -> list[tuple[str, ...]]:
    config = SweepConfig.model_validate({"method": "random", "num_trials": number})
    return (
        [trial.words for trial in trials.space(texts, config.method).trials(config)]
        if any(map(_swept, texts))
        else [tuple(texts)]
    )


def _swept(text: str) -> bool:
    return bool((read := parsed(text)) and read.is_sweep_override())


def answer(of: Any, hydra: Hydra, overrides: Sequence[str]) -> Any:
    """Return the values in their order, or what is said of a mistake."""
    try:
        return repr(of(hydra, "pretrain", overrides))
    except (HydraException, OmegaConfBaseException) as error:
        return first_line(error)


@pytest.mark.parametrize("texts", SWEEPS.values(), ids=SWEEPS)
def test_a_trial_is_composed_as_by_hydra_alone(texts: tuple[str, ...], hydra: Hydra) -> None:
    (words,) = each_trial((*WORDS, *texts), 1)
    check_the_same(hydra, words)


@pytest.mark.long
@pytest.mark.parametrize("texts", SWEEPS.values(), ids=SWEEPS)
def test_every_trial_is_composed_as_by_hydra_alone_also_when_rewritten(texts: tuple[str, ...], hydra: Hydra) -> None:
    for words in each_trial((*WORDS, *texts), 6):
        check_the_same(hydra, rewritten(hydra, words))
        check_the_same(hydra, words)


def check_the_same(hydra: Hydra, overrides: Sequence[str]) -> None:
    assert answer(composed, hydra, overrides) == answer(composed_at_once, hydra, overrides)


def rewritten(hydra: Hydra, words: Sequence[str]) -> list[str]:
    """Return words as they are given to Hydra; those with mistakes are left out."""
    return Session(hydra, "pretrain", read_flags("pretrain", list(words))).overrides


def test_options_are_those_that_hydra_lists_and_cost_no_copy_for_each_group(
    hydra: Hydra, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [group for group in hydra.list_all_config_groups() if group.partition("/")[0] != "hydra"]
    listed = {group: sorted(hydra.config_loader.get_group_options(group, ObjectType.CONFIG)) for group in groups}
    copies = []
    whole = CachingConfigRepository.__init__
    monkeypatch.setattr(CachingConfigRepository, "__init__", lambda self, one: copies.append(1) or whole(self, one))
    options_of.cache_clear()
    assert {group: list(options) for group, options in options_of(hydra).items()} == listed
    assert copies == []


def test_what_is_changed_in_one_composition_is_not_in_the_next(hydra: Hydra) -> None:
    first = composed(hydra, "pretrain", ["++optimizer.betas=[1,2]"])
    first["optimizer"]["betas"].append(3)
    first["model"]["num_layers"] = first["tracking"]["tags"] = None
    assert composed(hydra, "pretrain", ["++optimizer.betas=[1,2]"]) == composed_at_once(
        hydra, "pretrain", ["++optimizer.betas=[1,2]"]
    )


def test_a_sweep_reads_its_files_once_for_each_combination_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    whole = Hydra.compose_config
    monkeypatch.setattr(Hydra, "compose_config", lambda self, *args: calls.append(args) or whole(self, *args))
    texts = (*WORDS, "model=tiny,gpt2_124m", "optimizer.learning_rate=interval(1e-4,1e-2)")
    config = SweepConfig.model_validate({"method": "random", "num_trials": 50})
    with opened() as (hydra, flags):
        composer = Composer(hydra, flags)
        for trial in trials.space(texts, config.method).trials(config):
            composer.compose("pretrain", trial.words)
    assert len(calls) == 2


def test_a_file_that_was_changed_is_read_again_by_the_next_command(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for width in (32, 64):
        (tmp_path / "model/mine.yaml").write_text(f"defaults: [tiny]\nhidden_dim: {width}\n")
        with opened(["--config-dir", str(tmp_path)]) as (hydra, _):
            assert composed(hydra, "pretrain", ["model=mine"])["model"]["hidden_dim"] == width
