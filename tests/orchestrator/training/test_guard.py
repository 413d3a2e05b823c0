"""The decision to skip a step depends on its loss and norm and on earlier norms, also after a resume."""

import json
import math

import pytest
import torch

from orchestrator.checkpoints.progress import GuardState, Progress
from orchestrator.configuration.groups import GuardConfig
from orchestrator.training.guard import Rollback, StepGuard

NORMS = [1.0 + 0.1 * (-1) ** i for i in range(20)]  # mean 1, standard deviation 0.1


def judged(judge: StepGuard, loss: float, grad_norm: float | None) -> str | None:
    """Judge a step as the device does, and count it."""
    figures = torch.tensor([loss] if grad_norm is None else [loss, grad_norm], dtype=torch.float64)
    is_bad, limit = judge.judge(figures.nan_to_num(math.inf, math.inf, math.inf))
    reason = judge.count(loss, grad_norm, math.inf if limit is None else float(limit))
    assert bool(is_bad) == (reason is not None)
    return reason


def guard(norms: list[float], **settings: float) -> StepGuard:
    made = StepGuard(GuardConfig.model_validate(settings))
    for norm in norms:
        assert judged(made, 1.0, norm) is None
    return made


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_always_skipped(value: float) -> None:
    assert judged(guard([]), value, 1.0) == "the loss is not finite"
    assert judged(guard([]), 1.0, value) == "the gradient is not finite"
    assert judged(guard([]), value, None) == "the loss is not finite"


def test_a_spike_lies_beyond_the_configured_number_of_deviations() -> None:
    assert judged(guard(NORMS, spike_sigma=3), 1.0, 1.31) == "gradient norm 1.31, limit 1.3"
    assert judged(guard(NORMS, spike_sigma=3), 1.0, 1.29) is None
    assert judged(guard(NORMS, spike_sigma=4), 1.0, 1.31) is None


def test_without_sigma_no_finite_norm_is_a_spike() -> None:
    assert judged(guard(NORMS), 1.0, 1e30) is None


def test_nothing_is_a_spike_before_twenty_norms() -> None:
    assert judged(guard(NORMS[:19], spike_sigma=1), 1.0, 1e9) is None


def test_a_small_norm_is_no_spike() -> None:
    assert judged(guard(NORMS, spike_sigma=1), 1.0, 0.0) is None


def test_skipped_norms_stay_out_of_the_window() -> None:
    judge = guard(NORMS, spike_sigma=3)
    for norm in (100.0, math.inf, 100.0):
        assert judged(judge, 1.0, norm) is not None
    assert judge.state == GuardState(tuple(NORMS), num_skipped=3, num_in_a_row=3)


def test_the_window_holds_the_newest_norms() -> None:
    assert guard([9.0] * 5 + NORMS, window_steps=20).state.grad_norms == tuple(NORMS)


def test_a_good_step_ends_a_row_of_bad_ones_and_the_total_is_kept() -> None:
    judge = guard([], max_consecutive=2)
    for loss in (math.nan, 1.0, math.nan):
        judged(judge, loss, 1.0)
    assert (judge.state.num_skipped, judge.state.num_in_a_row, judge.is_exhausted) == (2, 1, False)
    judged(judge, math.nan, 1.0)
    assert judge.is_exhausted


def test_a_guard_restored_from_a_checkpoint_decides_like_one_that_never_stopped() -> None:
    norms = [1.0 + math.sin(i) / 3 + (i % 17 == 0) * 5 for i in range(200)]
    whole, resumed = (StepGuard(GuardConfig(spike_sigma=2, window_steps=30)) for _ in range(2))
    verdicts = [judged(whole, 1.0, norm) for norm in norms[:90]]
    resumed.restore(Progress.from_json(Progress(90, 90, guard=whole.state).to_json()).guard)
    after = [judged(whole, 1.0, norm) for norm in norms[90:]]
    assert any(verdicts)
    assert any(after)
    assert [judged(resumed, 1.0, norm) for norm in norms[90:]] == after
    assert resumed.state == whole.state


def test_skipped_steps_have_not_moved_the_optimizer() -> None:
    progress = Progress(10, 10, guard=GuardState(num_skipped=3))
    assert progress.optimizer_steps == 7
    assert json.loads(progress.to_json())["guard"]["num_skipped"] == 3


def test_a_run_rolls_back_at_most_max_rollbacks_times() -> None:
    judge = guard([], max_rollbacks=2)
    for number, may_roll_back in ((0, True), (1, True), (2, False), (3, False)):
        judge.restore(GuardState(num_rollbacks=number))
        assert (judge.may_roll_back, judge.state.num_rollbacks) == (may_roll_back, number)
    assert not guard([], max_rollbacks=0).may_roll_back


def test_a_rollback_skips_all_data_since_its_checkpoint() -> None:
    # steps 20 to 29 with the data of steps 27 to 36; the data of seven steps was skipped before
    rollback = Rollback(step=30, good_step=28, data_offset=7, global_batch_size=8, number=2, reason="bad")
    assert rollback.offset_from(20) == 17
    event = rollback.event(step=20, data_step=27, max_rollbacks=3)
    assert (event["step"], event["from_step"], event["data_steps"], event["samples"]) == (20, 30, 10, [216, 295])
    assert event["text"] == (
        "bad: back to the checkpoint after step 20, and on without samples 216 to 295 (rollback 2 of 3)"
    )


def test_a_second_rollback_to_the_same_checkpoint_also_skips_the_data_of_the_first() -> None:
    first = Rollback(step=30, good_step=28, data_offset=0, global_batch_size=8, number=1, reason="bad")
    second = Rollback(step=25, good_step=23, data_offset=10, global_batch_size=8, number=2, reason="bad")
    assert (first.offset_from(20), second.offset_from(20)) == (10, 15)
    assert second.event(step=20, data_step=20, max_rollbacks=3)["samples"] == [160, 279]
