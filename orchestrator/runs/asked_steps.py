"""Which samples of which data steps a question about a run means."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from modules.data.batches import Share
from orchestrator.configuration.batch import BatchConfig
from orchestrator.errors import UserError
from orchestrator.runs.data_steps import DataSteps, Stretch, batch_command

MicroBatchSize = Callable[[Stretch], int | None]
"""Returns the samples that a worker of a stretch computed at once; None if nobody knows."""


@dataclass(frozen=True)
class AskedStep:
    """A step with the samples of it that are asked for."""

    step: int
    """Counted from 1."""
    stretch: Stretch
    """In which it was trained."""
    samples: tuple[int, ...]
    """Not empty."""
    workers: Mapping[int, int]
    """The rank that has computed each place of the global batch; empty if nobody knows."""
    notes: tuple[str, ...]
    """Lines on what has become of the step."""

    @property
    def data_step(self) -> int:
        """Counted from 0."""
        return self.stretch.data_step(self.step)


@dataclass(frozen=True)
class Course:
    """What is known of a run's steps, for questions about them."""

    run_name: str
    steps: DataSteps
    global_batch_size: int
    micro_batch_size: MicroBatchSize

    def asked(self, config: BatchConfig) -> Iterator[AskedStep]:
        """Return the steps that a question means, one by one.

        Raises:
            UserError: the run has not come so far, or there is no such sample or worker.
        """
        if config.step is None:
            assert config.sample is not None
            return self._of_samples(*config.sample, config.worker)
        return self._of_steps(*config.step, config)

    def samples(self, data_step: int) -> tuple[int, int]:
        """Return the first and the last sample of a data step."""
        return data_step * self.global_batch_size, (data_step + 1) * self.global_batch_size - 1

    def _of_steps(self, first: int, last: int, config: BatchConfig) -> Iterator[AskedStep]:
        if not self.steps.of_step(last):
            raise UserError(f"step={last}: run {self.run_name} has not come so far; {self._reached()}")
        wanted = config.sample
        ends = [self.samples(self._newest(step).data_step(step)) for step in (first, last)]
        if wanted is not None and first == last and (wanted[1] < ends[0][0] or ends[0][1] < wanted[0]):
            raise UserError(f"sample={_range(*wanted)}: step {first} has the samples {_range(*ends[0])}")
        return self._each_step(first, last, config)

    def _each_step(self, first: int, last: int, config: BatchConfig) -> Iterator[AskedStep]:
        for step in range(first, last + 1):
            newest = self._newest(step)
            begin, end = self.samples(newest.data_step(step))
            if config.sample is not None:
                begin, end = max(begin, config.sample[0]), min(end, config.sample[1])
            if begin <= end:
                yield self._step(step, newest, begin, end, config.worker)

    def _newest(self, step: int) -> Stretch:
        return self.steps.lasting(step) or self.steps.of_step(step)[0]

    def _of_samples(self, first: int, last: int, worker: int | None) -> Iterator[AskedStep]:
        size = self.global_batch_size
        used = max((one.data_step(one.last) for one in self.steps.stretches if one.last), default=-1)
        if last > self.samples(used)[1]:
            upto = f"it has used samples 0 to {self.samples(used)[1]}" if used >= 0 else "it has used none yet"
            raise UserError(f"sample={_range(first, last)}: run {self.run_name} has not come so far; {upto}")
        return self._each_data_step(first // size, last // size, (first, last), worker)

    def _each_data_step(
        self, first: int, last: int, wanted: tuple[int, int], worker: int | None
    ) -> Iterator[AskedStep]:
        for data_step in range(first, last + 1):
            begin, end = self.samples(data_step)
            begin, end = max(begin, wanted[0]), min(end, wanted[1])
            used = self.steps.of_data_step(data_step)
            lasting = [(step, one) for step, one in used if self._lasts(step, one)]
            for step, one in lasting or used[:1]:
                yield self._step(step, one, begin, end, worker)

    def _step(self, step: int, stretch: Stretch, begin: int, end: int, worker: int | None) -> AskedStep:
        workers = self._workers(stretch)
        samples = range(begin, end + 1)
        if worker is not None:
            if worker >= stretch.world_size:
                plural = f"{stretch.world_size} workers, 0 to {stretch.world_size - 1}"
                count = plural if stretch.world_size > 1 else "1 worker, number 0"
                raise UserError(f"worker={worker}: step {step} was trained by {count}")
            if not workers:
                raise UserError(
                    f"worker={worker}: how step {step} was shared out was not recorded by the version that trained it, "
                    "and the run's config.yaml does not tell it; leave worker out"
                )
            samples = [one for one in samples if workers[one % self.global_batch_size] == worker]
        return AskedStep(step, stretch, tuple(samples), workers, tuple(self._notes(step, stretch)))

    def _workers(self, stretch: Stretch) -> dict[int, int]:
        size, world_size = self.global_batch_size, stretch.world_size
        micro = size if world_size == 1 else stretch.micro_batch_size or self.micro_batch_size(stretch)
        if micro is None or size % (world_size * micro):
            return {}
        shares = [Share(size, micro, rank, world_size).places() for rank in range(world_size)]
        return {place: rank for rank, places in enumerate(shares) for place in places.reshape(-1).tolist()}

    def _lasts(self, step: int, stretch: Stretch) -> bool:
        """Return whether the run's present state has learned a step from the data of a stretch."""
        lasting = self.steps.lasting(step)
        return lasting is not None and lasting.data_offset == stretch.data_offset

    def _notes(self, step: int, stretch: Stretch) -> Iterator[str]:
        """Yield what has become of a step that was trained in a stretch."""
        if reason := stretch.skipped.get(step):
            yield f"the guard skipped it: {reason}; weights and moments stayed as they were"
        lasting = self.steps.lasting(step)
        if lasting is None:
            yield f"undone: {self._reached()}, and has not trained it again"
        elif not self._lasts(step, stretch):
            first, last = self.samples(lasting.data_step(step))
            yield f"undone by a rollback: the step {step} that lasts was trained on samples {first} to {last}"
        else:
            others = (one for one in self.steps.of_step(step) if one.data_offset != stretch.data_offset)
            for first, last in (self.samples(one.data_step(step)) for one in others):
                command = batch_command(self.run_name, first, last)
                yield f"trained before on samples {first} to {last}, which a rollback has undone: {command}"

    def _reached(self) -> str:
        reached = self.steps.reached
        return f"it has reached step {reached}" if reached else "it has finished no step yet"


def _range(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"
