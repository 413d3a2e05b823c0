"""Source and window of a sample are a function of its number, and what the plain definition says they are."""

import itertools
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from plain_mixture import drawn, plain

from modules.config import ObjectiveConfig, PhaseConfig, SourceConfig, TokenizerConfig
from modules.data.batches import Batches, BatchSettings, Share
from modules.data.joined_stream import JoinedStream
from modules.data.masking import Masker
from modules.data.mixed_data import Schedule
from modules.data.mixture import Mixture, Part
from modules.data.sampler import WindowOrder
from modules.data.shards import TokenStream
from modules.data.tokenizer import build_tokenizer

LENGTH, SIZE, STEPS, SEED = 8, 12, 40, 3
TOKENIZER = build_tokenizer(TokenizerConfig(kind="byte"), lambda: iter(()), None)
PHASES = ((0.5, None), (0.25, {"a": 1.0, "c": 3.0}), (0.25, {"b": 0.2, "c": 0.8}))
OBJECTIVE = ObjectiveConfig(
    phases=tuple(PhaseConfig(weights={"clm": 1.0}, fraction=of, data_weights=weights) for of, weights in PHASES)
)
SOURCES = [SourceConfig(name=name, weight=weight) for name, weight in (("a", 0.6), ("b", 0.3), ("c", 0.1))]
SCHEDULE = Schedule(SOURCES, OBJECTIVE, STEPS, SIZE)


def stream(source: int, num_tokens: int) -> TokenStream:
    """Return a stream of random tokens in shards, with a document end every few tokens."""
    tokens = np.random.default_rng(source).integers(0, 256, num_tokens).astype("<u2")
    return TokenStream(
        [tokens[i : i + 300] for i in range(0, num_tokens, 300)], np.arange(0, num_tokens, 5 + source), np.ones(300)
    )


STREAMS = [stream(0, 900), stream(1, 130), stream(2, 400)]
ORDERS = [WindowOrder(len(of), LENGTH, SEED) for of in STREAMS]


def batches(rank: int, world_size: int, micro: int, **settings: bool) -> Batches:
    mixture = SCHEDULE.mixture(ORDERS)
    made = BatchSettings(LENGTH, SEED, OBJECTIVE, **settings)
    return Batches(JoinedStream(STREAMS), TOKENIZER, made, Share(SIZE, micro, rank, world_size), mixture)


def defined() -> list[tuple[int, int]]:
    """Source and first position of every sample, sample by sample."""
    seen, found = [0, 0, 0], []
    for (fraction, weights), own in zip(PHASES, [{"a": 6, "b": 3, "c": 1}] * 3, strict=True):
        whole = [int(1000 * (weights or own).get(name, 0)) for name in "abc"]
        for source in plain(whole, int(fraction * STEPS) * SIZE):
            (start,) = ORDERS[source].starts(np.array([seen[source]]))
            found.append((source, int(start)))
            seen[source] += 1
    return found


DEFINED = defined()


def tokens_of(source: int, start: int) -> list[int]:
    window = np.empty((1, LENGTH + 1), dtype=np.int64)
    STREAMS[source].fill(np.array([start]), LENGTH + 1, window)
    return window[0].tolist()


@pytest.mark.parametrize(("world_size", "micro"), [(1, 12), (1, 4), (2, 3), (3, 4), (3, 2)])
def test_every_sample_of_three_sources_and_phases_is_that_of_the_plain_definition(world_size: int, micro: int) -> None:
    runs = [batches(rank, world_size, micro).from_step(0) for rank in range(world_size)]
    found: dict[int, list[int]] = {}
    for _ in range(STEPS * SIZE // (world_size * micro)):
        for batch in map(next, runs):
            rows = torch.cat([batch["input_ids"], batch["targets"][:, -1:]], dim=1).tolist()
            found |= dict(zip(batch["sample_ids"].tolist(), rows, strict=True))
    assert sorted(found) == list(range(STEPS * SIZE))
    assert [found[number] for number in range(len(DEFINED))] == [tokens_of(*place) for place in DEFINED]


def test_training_that_is_resumed_with_other_workers_goes_on_with_the_samples_of_the_plain_definition() -> None:
    found: dict[int, list[int]] = {}
    for first, last, world_size, micro in ((0, 7, 2, 6), (7, 21, 3, 4), (21, 33, 1, 2), (33, STEPS, 2, 1)):
        for rank in range(world_size):
            steps = (batches(rank, world_size, micro).from_step(first), last - first)
            for batch in itertools.islice(steps[0], steps[1] * SIZE // (world_size * micro)):
                found |= dict(zip(batch["sample_ids"].tolist(), batch["targets"].tolist(), strict=True))
    assert [found[number] for number in range(len(DEFINED))] == [tokens_of(*place)[1:] for place in DEFINED]


def test_masks_and_documents_are_those_of_the_sample_and_of_its_source() -> None:
    made = batches(0, 1, SIZE, with_masked=True, with_documents=True)
    masker = Masker(OBJECTIVE, SEED, TOKENIZER.special_ids, TOKENIZER.mask_id or 0, TOKENIZER.vocab_size)
    for step in (0, 21, 35):
        (batch,) = made.micro_batches(step)
        lengths = iter(batch["lengths"])
        for row, number in enumerate(range(step * SIZE, (step + 1) * SIZE)):
            source, start = DEFINED[number]
            documents = STREAMS[source].document_ids(np.array([start]), LENGTH)
            expected = np.bincount(documents[0]).tolist()
            assert list(itertools.islice(lengths, len(expected))) == expected
            window = np.array([tokens_of(source, start)[:-1]])
            inputs, positions, targets = masker.mask(window, np.array([number]), documents)
            assert batch["mlm_input_ids"][row].tolist() == inputs[0].tolist()
            assert batch["mlm_positions"][row].tolist() == positions[0].tolist()
            assert batch["mlm_targets"][row].tolist() == targets[0].tolist()


def test_a_mixture_of_one_source_is_the_text_alone() -> None:
    settings, share = BatchSettings(LENGTH, SEED, OBJECTIVE), Share(SIZE, SIZE)
    mixture = Schedule([SourceConfig(name="a")], ObjectiveConfig(), STEPS, SIZE).mixture(ORDERS[:1])
    alone = Batches(STREAMS[0], TOKENIZER, settings, share)
    mixed = Batches(JoinedStream(STREAMS[:1]), TOKENIZER, settings, share, mixture)
    for step in (0, 1, 10**9):
        ((left,), (right,)) = alone.micro_batches(step), mixed.micro_batches(step)
        assert torch.equal(left["targets"], right["targets"])
        starts = ORDERS[0].starts(np.arange(step * SIZE, (step + 1) * SIZE))
        assert left["input_ids"].tolist() == [tokens_of(0, start)[:-1] for start in starts.tolist()]


def test_samples_far_away_are_found_at_once_and_are_those_of_the_sequence() -> None:
    rng = random.Random(4)
    for _ in range(5):
        parts, first = [], 0
        for _ in range(rng.randint(1, 3)):
            weights = [*drawn(rng, 60), *[0] * 9][:9]
            parts.append(Part(first, tuple(weights) if any(weights) else (1,) * 9))
            first += rng.randint(1, 500)
        mixture = Mixture([WindowOrder(100 + 50 * source, LENGTH, SEED) for source in range(9)], parts)
        sources, starts = mixture.locate(np.arange(first + 600))
        for number in rng.sample(range(first + 600), 20):
            source, start = mixture.locate(np.array([number]))
            assert (source[0], start[0]) == (sources[number], starts[number])
            assert mixture.counts(number).tolist() == np.bincount(sources[:number], minlength=9).tolist()
        period, last = sum(parts[-1].weights), parts[-1].first_sample
        far = last + period * 10**13
        ahead = np.arange(min(period, 600))
        assert mixture.locate(far + ahead)[0].tolist() == mixture.locate(last + ahead)[0].tolist()
        expected = [10**13 * weight for weight in parts[-1].weights]
        assert (mixture.counts(far) - mixture.counts(last)).tolist() == expected


def test_share_of_each_source_holds_within_one_sample_at_every_step_of_every_phase() -> None:
    mixture = SCHEDULE.mixture(ORDERS)
    for part, end in zip(SCHEDULE.parts(), [240, 360, 480], strict=True):
        for number in range(part.first_sample, end + 1):
            counts = mixture.counts(number) - mixture.counts(part.first_sample)
            for count, weight in zip(counts.tolist(), part.weights, strict=True):
                assert abs(count - (number - part.first_sample) * Fraction(weight, sum(part.weights))) < 1


def test_the_layout_goes_on_through_phases_of_the_same_weights() -> None:
    lengths = ({"fraction": 0.33}, {"fraction": 0.001}, {"fraction": 0.669, "data_weights": {"a": 12, "b": 6, "c": 2}})
    phases = tuple(PhaseConfig.model_validate({"weights": {"clm": 1.0}, **length}) for length in lengths)
    assert Schedule(SOURCES, ObjectiveConfig(phases=phases), STEPS, SIZE).parts() == [Part(0, (6, 3, 1))]


def test_weights_that_are_rounded_are_told_by_phase() -> None:
    phases = (
        PhaseConfig(weights={"clm": 1.0}, fraction=0.5),
        PhaseConfig(weights={"clm": 1.0}, fraction=0.5, data_weights={"a": 0.123456789, "b": 1}),
    )
    (note,) = Schedule(SOURCES, ObjectiveConfig(phases=phases), STEPS, SIZE).notes()
    assert note.startswith("note: the weights of phase 1 need a period of more than 65536 samples")


def test_a_stream_of_joined_streams_says_what_each_of_them_says() -> None:
    joined, rng = JoinedStream(STREAMS), np.random.default_rng(0)
    sources = rng.integers(0, 3, 50)
    starts = np.array([rng.integers(0, len(STREAMS[source]) - LENGTH) for source in sources])
    positions = joined.positions(sources, starts)
    out = np.empty((50, LENGTH), dtype=np.int64)
    joined.fill(positions, LENGTH, out)
    documents = joined.document_ids(positions, LENGTH)
    for row, (source, start) in enumerate(zip(sources, starts.tolist(), strict=True)):
        assert out[row].tolist() == tokens_of(source, start)[:LENGTH]
        assert documents[row].tolist() == STREAMS[source].document_ids(np.array([start]), LENGTH)[0].tolist()
    assert len(joined) == 1430
    assert joined.num_bytes(positions, LENGTH) == 50 * LENGTH
    unknown = JoinedStream([STREAMS[0], TokenStream([np.zeros(60, dtype="<u2")], np.array([0]))])
    assert unknown.num_bytes(np.array([0]), LENGTH) == LENGTH
    assert unknown.num_bytes(np.array([0, 900]), LENGTH) is None
