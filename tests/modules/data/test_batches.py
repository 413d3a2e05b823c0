import itertools
import re

import numpy as np
import pytest
import torch

from modules.config import MaskingConfig, ObjectiveConfig, TokenizerConfig
from modules.data.batches import Batches, BatchSettings, Share, ValidationBatches
from modules.data.shards import TokenStream
from modules.data.tokenizer import build_tokenizer
from modules.errors import InputError

TOKENIZER = build_tokenizer(TokenizerConfig(kind="byte"), lambda: iter(()), None)
LENGTH, GLOBAL = 16, 12
SHARINGS = [(1, 12), (1, 4), (2, 6), (2, 3), (3, 2), (4, 3), (6, 2), (12, 1)]


def token_stream(num_tokens=1000, special_every=10):
    tokens = np.random.default_rng(0).integers(0, 256, num_tokens).astype("<u2")
    starts = np.arange(0, num_tokens, special_every)
    tokens[starts[1:] - 1] = TOKENIZER.end_of_text_id
    return TokenStream([tokens[i : i + 600] for i in range(0, num_tokens, 600)], starts, TOKENIZER.token_num_bytes())


STREAM = token_stream()


SHARE_FIELDS = ("global_batch_size", "micro_batch_size", "rank", "world_size")


def settings(changes):
    share = {
        "global_batch_size": GLOBAL,
        "micro_batch_size": GLOBAL,
        **{k: v for k, v in changes.items() if k in SHARE_FIELDS},
    }
    others = {name: value for name, value in changes.items() if name not in SHARE_FIELDS}
    decides = {"sequence_length": LENGTH, "seed": 5, "objective": ObjectiveConfig(), "with_masked": True}
    return BatchSettings(**{**decides, "with_documents": True, "restarts_positions": True, **others}), Share(**share)


def batches(stream=STREAM, **changes):
    return Batches(stream, TOKENIZER, *settings(changes))


def validation(stream=STREAM, num_batches=3, **changes):
    return ValidationBatches(stream, TOKENIZER, *settings(changes), num_batches)


def joined(parts):
    """One batch of what the workers' micro-batches hold, in the order of the global batch."""
    ordered = [part for micro in zip(*parts, strict=True) for part in micro]
    names = [name for name, value in ordered[0].items() if isinstance(value, torch.Tensor) and name != "offsets"]
    tensors = {name: torch.cat([p[name] for p in ordered]) for name in names}
    tensors |= documents(list(itertools.chain.from_iterable(p.get("lengths", ()) for p in ordered)))
    counts = [p["num_bytes"] for p in ordered if "num_bytes" in p]
    return {**tensors, **({"num_bytes": torch.tensor(sum(counts))} if counts else {})}


def documents(lengths):
    """What a batch says of documents of these lengths."""
    return {"lengths": lengths, "offsets": torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)}


def same(left, right):
    if left.keys() != right.keys() or left.get("lengths") != right.get("lengths"):
        return False
    return all(torch.equal(left[name], right[name]) for name in left if name != "lengths")


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("world_size", "micro_batch_size"), SHARINGS)
def test_a_step_is_the_same_batch_however_it_is_shared_out(world_size, micro_batch_size, shift):
    objective = ObjectiveConfig(mlm_shift=shift)
    for step in (0, 3, 10**12):
        (whole,) = batches(objective=objective).micro_batches(step)
        assert whole.pop("step") == step
        shared = [
            list(
                batches(
                    objective=objective, rank=rank, world_size=world_size, micro_batch_size=micro_batch_size
                ).micro_batches(step)
            )
            for rank in range(world_size)
        ]
        assert same(joined(shared), whole)


@pytest.mark.parametrize(("world_size", "micro_batch_size"), SHARINGS)
def test_validation_is_the_same_however_it_is_shared_out(world_size, micro_batch_size):
    whole = joined([list(validation())])
    shared = [
        list(validation(rank=rank, world_size=world_size, micro_batch_size=micro_batch_size))
        for rank in range(world_size)
    ]
    assert same(joined(shared), whole)


def test_steps_from_the_middle_are_those_of_the_whole_run():
    run = itertools.islice(batches(micro_batch_size=4).from_step(0), 30)
    resumed = itertools.islice(batches(micro_batch_size=4).from_step(5), 15)
    for expected, found in zip(list(run)[15:], resumed, strict=True):
        assert expected.pop("step") == found.pop("step")
        assert same(expected, found)


def test_a_batch_has_the_shapes_and_types_of_the_contract():
    (batch,) = batches(objective=ObjectiveConfig(mlm_probability=0.25)).micro_batches(0)
    shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items() if torch.is_tensor(value)}
    wide, few = ((GLOBAL, LENGTH), torch.int64), ((GLOBAL, 4), torch.int64)
    assert shapes == {
        "input_ids": wide,
        "targets": wide,
        "mlm_input_ids": wide,
        "mlm_positions": few,
        "mlm_targets": few,
        "offsets": ((len(batch["lengths"]) + 1,), torch.int32),
        "positions": wide,
        "sample_ids": ((GLOBAL,), torch.int64),
    }


def test_what_was_not_asked_for_is_not_made():
    (batch,) = batches(with_masked=False, with_documents=False).micro_batches(0)
    assert set(batch) == {"input_ids", "targets", "sample_ids", "step"}


def test_targets_are_the_next_tokens():
    for batch in itertools.islice(batches().from_step(0), 20):
        assert torch.equal(batch["input_ids"][:, 1:], batch["targets"][:, :-1])


def test_an_epoch_shows_every_window_once():
    run, per_epoch = batches(global_batch_size=1, micro_batch_size=1), (1000 - LENGTH) // LENGTH
    seen = [batch["input_ids"].numpy().tobytes() for batch in itertools.islice(run.from_step(0), per_epoch)]
    assert len(set(seen)) == per_epoch


def test_another_seed_gives_another_order():
    (one,), (other,) = batches(seed=1).micro_batches(0), batches(seed=2).micro_batches(0)
    assert not torch.equal(one["input_ids"], other["input_ids"])


def test_windows_across_shards_are_whole():
    stream = token_stream(3000)
    everything = torch.empty(1, 3000, dtype=torch.int64)
    stream.fill(np.array([0]), 3000, everything.numpy())
    windows = {bytes(everything[0, i : i + LENGTH].numpy().tobytes()) for i in range(3000 - LENGTH)}
    for batch in itertools.islice(batches(stream).from_step(0), 30):
        assert {row.tobytes() for row in batch["input_ids"].numpy()} <= windows


@pytest.mark.parametrize("restarts", [False, True])
def test_documents_and_their_positions_begin_after_each_end_of_text(restarts):
    (batch,) = batches(restarts_positions=restarts).micro_batches(0)
    lengths, positions = [], []
    for row in batch["input_ids"].tolist():
        text = "".join("e" if token == TOKENIZER.end_of_text_id else "." for token in row)
        found = [len(part) for part in re.findall(r"\.*e|\.+", text)]
        lengths += found
        positions.append([place for length in found for place in range(length)])
    assert batch["lengths"] == lengths
    assert batch["offsets"].tolist() == [0, *itertools.accumulate(lengths)]
    assert batch["positions"].tolist() == (positions if restarts else list(range(LENGTH)))


def many_masked(num_steps=60, special_every=10, **objective):
    stream = token_stream(20_000, special_every)
    run = batches(
        stream, sequence_length=64, objective=ObjectiveConfig(**objective), global_batch_size=16, micro_batch_size=16
    )
    return list(itertools.islice(run.from_step(0), num_steps))


@pytest.mark.parametrize("shift", [False, True])
def test_masked_targets_are_the_tokens_that_were_there(shift):
    for batch in many_masked(5, mlm_shift=shift):
        places = batch["mlm_positions"] + int(shift)
        assert torch.equal(batch["input_ids"].gather(1, places), batch["mlm_targets"])
        assert (batch["mlm_positions"][:, 1:] > batch["mlm_positions"][:, :-1]).all()
        assert places.min() >= int(shift)
        untouched = torch.ones_like(batch["input_ids"], dtype=torch.bool).scatter(1, places, False)
        assert torch.equal(batch["mlm_input_ids"][untouched], batch["input_ids"][untouched])


def test_special_tokens_are_not_masked_where_there_are_others():
    assert not any(
        torch.isin(batch["mlm_targets"], torch.tensor(TOKENIZER.special_ids)).any() for batch in many_masked()
    )


def test_special_tokens_are_masked_where_too_few_others_are_left():
    (batch,) = many_masked(1, special_every=2, mlm_probability=0.75)
    assert batch["mlm_targets"].shape == (16, 48)
    assert (batch["mlm_targets"] == TOKENIZER.end_of_text_id).sum(1).eq(16).all()


def test_a_shifted_target_never_begins_a_document():
    for batch in many_masked(10, mlm_shift=True):
        numbers = torch.arange(len(batch["lengths"])).repeat_interleave(torch.tensor(batch["lengths"]))
        ids, places = numbers.view_as(batch["input_ids"]), batch["mlm_positions"]
        assert torch.equal(ids.gather(1, places), ids.gather(1, places + 1))


def test_shares_of_masked_random_and_unchanged_are_those_asked_for():
    for shares in (MaskingConfig(), MaskingConfig(mask=0.5, random=0.3, unchanged=0.2)):
        every = many_masked(mlm_corruption=shares)
        seen = torch.cat([batch["mlm_input_ids"].gather(1, batch["mlm_positions"]).flatten() for batch in every])
        targets = torch.cat([batch["mlm_targets"].flatten() for batch in every])
        masked, kept = seen == TOKENIZER.mask_id, seen == targets
        others = seen[~masked & ~kept]
        # a random token is the old one in one of 256 cases
        expected = (shares.mask, shares.unchanged + shares.random / 256, shares.random * 255 / 256)
        for found, share in zip((masked.sum(), kept.sum(), len(others)), expected, strict=True):
            assert abs(int(found) - share * len(seen)) < 3 * np.sqrt(len(seen) * share * (1 - share))
        assert others.max() < 256  # never special


def test_every_position_is_masked_equally_often():
    counts = torch.zeros(64)
    for batch in many_masked(200, special_every=10_000):
        counts += torch.bincount(batch["mlm_positions"].flatten(), minlength=64)
    expected = counts.sum() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * np.sqrt(2 * 63)


def test_masks_change_from_epoch_to_epoch():
    run = batches(token_stream(33, 1000), global_batch_size=1, micro_batch_size=1)
    positions = {tuple(batch["mlm_positions"][0].tolist()) for batch in itertools.islice(run.from_step(0), 100)}
    assert len(positions) > 20


def test_the_number_of_masked_positions_is_exact_and_at_least_one():
    for probability, count in ((0.15, 2), (0.01, 1), (0.99, 15)):
        (batch,) = batches(objective=ObjectiveConfig(mlm_probability=probability, mlm_shift=True)).micro_batches(0)
        assert batch["mlm_positions"].shape == (GLOBAL, count)


def test_validation_reads_the_first_windows_in_order_and_again_the_same():
    run = validation(with_documents=False)
    first, again = list(run), list(run)
    assert len(first) == len(run) == 3
    tokens = torch.empty(1, 1000, dtype=torch.int64)
    STREAM.fill(np.array([0]), 1000, tokens.numpy())
    assert torch.equal(joined([first])["input_ids"], tokens[0, : 3 * GLOBAL * LENGTH].view(-1, LENGTH))
    assert torch.equal(joined([first])["targets"].flatten(), tokens[0, 1 : 3 * GLOBAL * LENGTH + 1])
    assert same(joined([first]), joined([again]))


def test_validation_counts_the_bytes_that_its_targets_stand_for():
    sizes = torch.from_numpy(TOKENIZER.token_num_bytes())
    for batch in validation():
        assert batch["num_bytes"] == sizes[batch["targets"]].sum()


def test_validation_of_a_short_text_repeats_its_windows_to_fill_one_batch():
    run = validation(token_stream(3 * LENGTH + 1), num_batches=10)
    assert run.num_batches == 1
    (batch,) = run
    assert torch.equal(batch["input_ids"][:3].repeat(4, 1), batch["input_ids"])


def test_validation_takes_whole_batches_only():
    assert validation(token_stream(20 * LENGTH + 1), num_batches=10).num_batches == 1


@pytest.mark.parametrize("make", [batches, validation])
def test_too_little_text_for_one_sample_is_refused(make):
    with pytest.raises(InputError, match=r"sequence_length=16: the data has 16 tokens, and one sample takes 17"):
        make(token_stream(LENGTH))
    make(token_stream(LENGTH + 1))


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(InputError, match="not divisible by 5 workers"):
        batches(world_size=5, micro_batch_size=1)
