"""Which strategy fits, and how large a micro-batch can be."""

from dataclasses import replace

import pytest

from modules.model_config import LoraConfig, ModelConfig
from orchestrator.errors import ConfigError
from orchestrator.planning.advice import candidates, chosen, fits, largest_micro_batch, nothing_fits, simplest
from orchestrator.planning.memory import STRATEGIES, Setting, memory, needed, not_reckoned

SHAPE = ModelConfig(num_layers=24, num_heads=16, hidden_dim=2048, max_positions=1024)
SETTING = Setting(SHAPE, 50257, "bf16", 1024, 4, num_workers=8)


def test_the_simplest_strategy_that_fits_is_chosen_as_memory_shrinks() -> None:
    sizes = sorted((needed(memory(SETTING, name), SETTING) for name in candidates(8, "bf16")), reverse=True)
    found = [simplest(SETTING, size) for size in sizes]
    assert found[0] == "ddp"
    assert all(name is not None for name in found)
    order = candidates(8, "bf16")
    assert [order.index(name) for name in found if name] == sorted(order.index(name) for name in found if name)


def test_half_precision_weights_are_for_zero_alone_and_one_worker_needs_none() -> None:
    assert set(candidates(8, "bf16-true")) == {"zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"}
    assert candidates(1, "32")[0] == "single"


def test_what_would_fit_where_nothing_does_fits_and_one_step_less_does_not() -> None:
    of = replace(SETTING, micro_batch=8)
    usable = needed(memory(of.with_micro_batch(4), "zero3_offload"), of)
    assert simplest(of, usable) is None
    found = simplest(of.with_micro_batch(4), usable)
    with pytest.raises(ConfigError, match=rf"^strategy=auto: no strategy fits.*micro_batch_size=4 \({found}\)"):
        chosen(of, usable)
    alone = replace(SETTING, micro_batch=1, accumulation=64)
    usable = min(needed(memory(alone.among(64), name), alone) for name in candidates(64, "bf16"))
    fewest = next(number for number in (8, 16, 32, 64) if simplest(alone.among(number), usable))
    assert fewest > 8
    assert f"cluster.num_workers={fewest} with training.micro_batch_size=1 (" in nothing_fits(alone, usable)


def test_a_sequence_that_fits_nowhere_is_said_to_be_too_long() -> None:
    message = nothing_fits(SETTING, 1e9)
    assert "what would fit" not in message
    assert "each of 32 workers" in message
    assert "lower training.sequence_length" in message


def test_workers_of_one_processor_are_no_remedy() -> None:
    message = nothing_fits(replace(SETTING, device="cpu", micro_batch=1, accumulation=64), 5e9)
    assert "num_workers" not in message
    assert "take a smaller model or more memory" in message


def test_offloaded_state_must_fit_into_the_host() -> None:
    size = needed(memory(SETTING, "zero3_offload"), SETTING)
    assert fits(SETTING, "zero3_offload", size, host_bytes=1e12)
    assert not fits(SETTING, "zero3_offload", size, host_bytes=1e9)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_largest_micro_batch_fits_shares_out_the_batch_and_the_next_one_does_not(strategy: str) -> None:
    of = replace(SETTING, accumulation=90, num_workers=1 if strategy == "single" else 8)
    most = largest_micro_batch(of, strategy, 60e9)  # type: ignore[arg-type]
    sizes = [size for size in range(1, 361) if 360 % size == 0]
    assert 1 < most < 360
    assert fits(of.with_micro_batch(most), strategy, 60e9)  # type: ignore[arg-type]
    assert not fits(of.with_micro_batch(sizes[sizes.index(most) + 1]), strategy, 60e9)  # type: ignore[arg-type]
    assert largest_micro_batch(of, strategy, 1e6) == 0  # type: ignore[arg-type]


def test_a_step_keeps_its_sequences_in_other_micro_batches_and_among_other_workers() -> None:
    of = replace(SETTING, accumulation=6)
    for other in (of.with_micro_batch(3), of.among(2), of.among(96)):
        assert other.sequences * other.num_workers == of.sequences * of.num_workers


def test_gradients_of_earlier_micro_batches_lie_beside_the_buckets_of_ddp() -> None:
    once, twice = memory(SETTING, "ddp"), memory(replace(SETTING, accumulation=2), "ddp")
    assert twice.gradients - once.gradients == 4 * SETTING.num_trained


def test_more_workers_never_need_more_of_a_device_under_zero() -> None:
    for strategy in ("zero1", "zero2", "zero3"):
        sizes = [needed(memory(replace(SETTING, num_workers=number), strategy), SETTING) for number in (2, 8, 64, 1024)]
        assert sizes == sorted(sizes, reverse=True)


def test_adapters_need_less_than_the_whole_model() -> None:
    adapted = replace(SETTING, model=SHAPE.model_copy(update={"lora": LoraConfig(target_layers=("c_attn",))}))
    less, whole = memory(adapted, "ddp"), memory(SETTING, "ddp")
    assert less.gradients + less.optimizer < 0.02 * (whole.gradients + whole.optimizer)
    assert less.activations < whole.activations


def test_settings_of_deepspeed_that_are_not_known_are_named() -> None:
    given = {"zero_optimization": {"reduce_bucket_size": 1e9, "offload_param": {}}, "zenflow": {}}
    assert not_reckoned(given) == ["zenflow", "zero_optimization.offload_param"]
    larger = memory(replace(SETTING, micro_batch=1, deepspeed=given), "zero2")
    assert larger.on_device > memory(replace(SETTING, micro_batch=1), "zero2").on_device


def test_a_gpu_reduces_one_bucket_of_gradients_while_another_is_filled() -> None:
    alone = replace(
        SETTING, micro_batch=1, deepspeed={"zero_optimization": {"overlap_comm": False, "reduce_bucket_size": 1e9}}
    )
    both = replace(SETTING, micro_batch=1, deepspeed={"zero_optimization": {"reduce_bucket_size": 1e9}})
    assert memory(both, "zero2").buffers - memory(alone, "zero2").buffers == 4 * 10**9


def test_a_copy_of_a_save_lies_on_the_host_unless_saves_wait_for_the_store() -> None:
    waiting = replace(SETTING, keeps_snapshot=False)
    assert memory(waiting, "zero2").host == 0
    assert memory(SETTING, "zero2").host == 12 * SETTING.num_trained // 8


def test_weights_of_a_compiled_block_are_gathered_together_under_zero3() -> None:
    deepspeed = {"zero_optimization": {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}}
    wide = SHAPE.model_copy(update={"hidden_dim": 4096})
    of = replace(SETTING, model=wide, vocab_size=256, deepspeed=deepspeed)
    compiled = replace(of, compiles_blocks=True)
    more = memory(compiled, "zero3").weights - memory(of, "zero3").weights
    matrices, rest = (3 + 1 + 4 + 4) * 4096**2, (4 + 3 + 1 + 4 + 1) * 4096
    assert more == 4 * (matrices + rest - 4 * 4096**2)
    assert memory(compiled, "zero2") == memory(of, "zero2")
