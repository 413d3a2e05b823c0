"""The rules between groups, and the values computed from several groups."""

from typing import Any

import pytest
from pydantic import ValidationError

from modules.config import Config
from modules.data.batches import Share
from modules.schedule import learning_rate
from orchestrator.configuration.commands import EvaluateConfig, PrepareConfig, PretrainConfig
from orchestrator.configuration.groups import ClusterConfig, RunConfig, StrategyConfig
from orchestrator.configuration.mistakes import mistakes_in
from orchestrator.configuration.rules import cross_group_mistakes, micro_batch_size, notes, worker_counts


def pretrain(**groups: Any) -> PretrainConfig:
    return PretrainConfig.model_validate(groups)


def accumulation_steps(config: PretrainConfig, num_workers: int) -> int:
    micro_size = micro_batch_size(config, num_workers)
    return Share(config.training.global_batch_size, micro_size, world_size=num_workers).accumulation_steps


def test_defaults_break_no_rule() -> None:
    assert cross_group_mistakes(pretrain()) == []


@pytest.mark.parametrize(("num_workers", "micro", "accumulation"), [(1, 8, 12), (2, 8, 6), (3, 8, 4), (12, 8, 1)])
def test_global_batch_is_micro_times_workers_times_accumulation(
    num_workers: int, micro: int, accumulation: int
) -> None:
    config = pretrain(training={"global_batch_size": 96, "micro_batch_size": micro})
    assert accumulation_steps(config, num_workers) == accumulation


def test_without_a_micro_batch_size_a_worker_takes_its_whole_share() -> None:
    config = pretrain(training={"global_batch_size": 96})
    assert micro_batch_size(config, 4) == 24
    assert accumulation_steps(config, 4) == 1


def test_batch_that_cannot_be_shared_out_names_the_nearest_that_can() -> None:
    config = pretrain(
        training={"global_batch_size": 100, "micro_batch_size": 8},
        cluster={"num_workers": 3},
        strategy={"name": "ddp"},
    )
    (mistake,) = cross_group_mistakes(config)
    assert mistake.startswith("training.global_batch_size=100: not divisible by 3 workers x micro_batch_size 8")
    assert mistake.endswith("nearest: 96 or 120")


def elastic(fewest: int, most: int, batch: int, micro: int | None = None) -> PretrainConfig:
    return pretrain(
        training={"global_batch_size": batch, "micro_batch_size": micro},
        cluster={"name": "ray", "num_workers": [fewest, most]},
        strategy={"name": "ddp"},
    )


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        (elastic(1, 8, 32), [1, 2, 4, 8]),
        (elastic(8, 16, 64), [8, 16]),
        (elastic(8, 16, 60), [10, 12, 15]),
        (elastic(1, 8, 32, micro=8), [1, 2, 4]),
        (elastic(1, 8, 840), [1, 2, 3, 4, 5, 6, 7, 8]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_elastic_run_uses_the_numbers_of_workers_that_fit_and_says_which(
    config: PretrainConfig, counts: list[int]
) -> None:
    assert worker_counts(config) == counts
    assert cross_group_mistakes(config) == []
    *others, last = map(str, counts)
    said = " ".join(notes(config))
    assert (f"among {', '.join(others)} or {last} workers" in said) == (len(counts) < len(config.cluster.worker_counts))


@pytest.mark.parametrize(
    ("config", "nearest"), [(elastic(5, 7, 32), [30, 35]), (elastic(5, 6, 7, micro=4), [20]), (elastic(9, 9, 8), [9])]
)
def test_elastic_run_without_a_number_that_fits_names_batches_that_would(
    config: PretrainConfig, nearest: list[int]
) -> None:
    (mistake,) = cross_group_mistakes(config)
    assert mistake.endswith(f"nearest: {' or '.join(map(str, nearest))}")
    for size in nearest:
        training = config.training.model_copy(update={"global_batch_size": size})
        assert cross_group_mistakes(config.model_copy(update={"training": training})) == []


@pytest.mark.parametrize("batch", [24, 32, 40, 60, 840])
def test_micro_batch_never_grows_as_workers_leave(batch: int) -> None:
    config = elastic(1, 8, batch)
    counts = worker_counts(config)
    sizes = [micro_batch_size(config, number) for number in counts]
    assert sizes[-1] == batch // counts[-1] == max(sizes)
    for number, size in zip(counts, sizes, strict=True):
        assert size * number * accumulation_steps(config, number) == batch
        assert size == sizes[-1] or batch // number % sizes[-1]


def test_phases_must_cover_the_steps() -> None:
    phases = [{"weights": {"clm": 1}, "steps": 30}, {"weights": {"mlm": 1}, "steps": 50}]
    (mistake,) = cross_group_mistakes(pretrain(objective={"phases": phases}, training={"num_steps": 100}))
    assert "cover 80 of training.num_steps=100" in mistake


def test_single_strategy_takes_one_worker() -> None:
    (mistake,) = cross_group_mistakes(pretrain(cluster={"num_workers": 2}))
    assert mistake.startswith("strategy=single")


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("strategy", ["single", "ddp", "zero1", "zero3_offload"])
def test_half_precision_weights_need_the_float32_weights_of_zero(precision: str, strategy: str) -> None:
    mistakes = cross_group_mistakes(pretrain(training={"precision": precision}, strategy={"name": strategy}))
    assert bool(mistakes) == (strategy in ("single", "ddp"))
    for mistake in mistakes:
        assert mistake.startswith(f"training.precision={precision}: ")
        assert mistake.endswith(f"training.precision={precision[:-5]}; choose that, or strategy=zero1, zero2, zero3")


@pytest.mark.parametrize(("precision", "fits"), [("bf16", False), ("bf16-true", True), ("16", False), ("32", True)])
def test_float32_weights_are_not_quantized_under_autocast(precision: str, fits: bool) -> None:
    deepspeed = {"zero_optimization": {"zero_quantized_weights": True}}
    config = pretrain(training={"precision": precision}, strategy={"name": "zero3", "deepspeed": deepspeed})
    assert (cross_group_mistakes(config) == []) == fits


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bf16": {"enabled": True}}, "bf16: "),
        ({"torch_autocast": {"enabled": True}, "data_types": {}}, "data_types, torch_autocast: "),
        ({"communication_data_type": "bf16"}, "communication_data_type: "),
        ({"fp16": {"enabled": True, "loss_scale": 8}}, "fp16.enabled: "),
        ({"fp16": {"initial_scale_power": 8}, "zero_optimization": {"overlap_comm": False}}, None),
    ],
)
def test_settings_of_deepspeed_leave_the_precision_alone(settings: dict[str, Any], named: str | None) -> None:
    if named is None:
        assert StrategyConfig.model_validate({"name": "zero2", "deepspeed": settings}).deepspeed == settings
        return
    with pytest.raises(ValidationError, match=rf"{named}the precision .* set training\.precision instead"):
        StrategyConfig.model_validate({"name": "zero2", "deepspeed": settings})


@pytest.mark.parametrize(
    ("name", "stage", "offload"), [("ddp", 0, False), ("zero2", 2, False), ("zero3_offload", 3, True)]
)
def test_strategy_name_gives_stage_and_offload(name: str, stage: int, offload: bool) -> None:
    strategy = StrategyConfig.model_validate({"name": name})
    assert (strategy.zero_stage, strategy.offload) == (stage, offload)


@pytest.mark.parametrize(
    "values", [{"num_workers": [4, 2], "name": "ray"}, {"num_workers": [1, 2]}, {"address": "auto"}]
)
def test_impossible_cluster_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClusterConfig.model_validate(values)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b/c", "a/", "/a", "a/../b", "a/model", "-x", "a b", "ä"])
def test_run_name_can_be_nothing_but_a_folder_or_one_within_a_pipeline(name: str) -> None:
    with pytest.raises(ValidationError):
        RunConfig(name=name)


def test_configuration_is_frozen_and_comes_back_from_plain_data() -> None:
    config = pretrain(cluster={"name": "ray", "num_workers": [1, 2]})
    with pytest.raises(ValidationError):
        config.run = RunConfig(name="other")  # type: ignore[misc]
    assert PretrainConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("warmup_steps", "told"),
    [
        (99, ""),
        (100, "rises to 0.001 at the last step and does not fall to 0.0001"),
        (200, "rises to 0.0005 at the last step, never reaches 0.001 and does not fall to 0.0001"),
    ],
)
def test_a_warm_up_as_long_as_the_run_is_told(warmup_steps: int, told: str) -> None:
    config = pretrain(optimizer={"warmup_steps": warmup_steps}, training={"num_steps": 100})
    lines = notes(config)
    assert [told in line for line in lines] == [True] * bool(told)
    peak = learning_rate(config.optimizer, 99, 100)
    assert not told or f"rises to {peak:g} " in lines[0]


@pytest.mark.parametrize("kind", [PrepareConfig, PretrainConfig, EvaluateConfig])
@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"source": "files", "path": "a", "val_path": "v"}, "data.val_path=[v]: belongs to the rows of a task"),
        ({"source": "files", "path": "a", "test_path": ["t", "u"]}, "data.test_path=[t,u]: belongs to the rows"),
        ({"source": "huggingface", "path": "a", "hub_val_split": "v"}, "data.hub_val_split=v: belongs to"),
        ({"source": "huggingface", "path": "a", "hub_test_split": "t"}, "data.hub_test_split=t: belongs to"),
        ({"split_field": None}, "data.split_field=null: belongs to the rows of a task"),
    ],
)
def test_text_takes_no_splits_of_a_task(kind: type[Config], data: dict[str, Any], told: str) -> None:
    model = {"model": {"path": "x"}} if kind is EvaluateConfig else {}
    (mistake,) = mistakes_in({"data": data, **model}, kind)
    assert mistake.startswith(told)
    assert mistake.endswith("said by data.val_fraction and data.split; leave it out")


def test_the_files_of_a_split_are_told_without_their_signature() -> None:
    data = {"source": "files", "path": "a", "val_path": "https://host/v.jsonl?X-Amz-Signature=secret"}
    (mistake,) = mistakes_in({"data": data}, PrepareConfig)
    assert "secret" not in mistake


@pytest.mark.parametrize("model", [{}, {"model": {}}, {"model": {"path": 5}}])
def test_rules_wait_for_what_must_be_given(model: dict[str, Any]) -> None:
    mistakes = mistakes_in({"data": {"split_field": None}, **model}, EvaluateConfig)
    assert mistakes
    assert all(mistake.startswith("model") for mistake in mistakes)


def test_the_evaluation_of_a_model_on_its_own_data_breaks_no_rule() -> None:
    assert mistakes_in({"model": {"path": "x"}}, EvaluateConfig) == []
