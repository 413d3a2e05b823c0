"""The data of a run's steps, found by the objects that the training itself uses."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from modules.config import ObjectiveConfig, SourceConfig, TrainingConfig
from modules.data.mixed_data import MixedData
from modules.finetuning import TokenFinetuning, finetuning
from modules.model import GPT
from modules.phases import phase_of_step
from modules.pretraining import Pretraining
from modules.samples import Part, Sample
from modules.tasks.settings import TaskConfig
from orchestrator.artifacts import artifact
from orchestrator.artifacts.mixture import sources_of
from orchestrator.artifacts.opened_data import open_examples, open_source_rows, open_tokens
from orchestrator.artifacts.source_rows import SourceRows
from orchestrator.errors import DamagedFileError, UserError
from orchestrator.runs.run import Run
from orchestrator.runs.step_rows import PartRow, SampleRow, weighted
from orchestrator.storage.store import Storage

_NUM_READERS = 8


@dataclass(frozen=True)
class Measure:
    """A model by which losses are computed."""

    model: GPT
    """In evaluation mode."""
    precision: AbstractContextManager[Any]
    """In which it computes; it can be entered several times."""


@dataclass(frozen=True)
class StepData:
    """The prepared data of a run, and what is learned from it."""

    objective: Pretraining | TokenFinetuning
    rows: Mapping[str, SourceRows | None]
    """Where documents or examples come from, by the source; None where an earlier version has prepared them."""
    phases: ObjectiveConfig | None
    """None for a task."""
    num_steps: int

    @classmethod
    def open(cls, storage: Storage, run: Run, cache_bytes: int) -> "StepData":
        """Open the data of a run.

        Args:
            cache_bytes: Bytes of remote data that this machine keeps at most.

        Raises:
            UserError: it is not there.
            ArtifactError: it is damaged, as far as it is read.
            DamagedFileError: the recipe is none that this version knows.
        """
        names = _names(storage, run)
        try:
            training = TrainingConfig.model_validate(run.recipe["training"])
            objective, phases = _objective(storage, run.recipe, training, names, cache_bytes)
        except (ValidationError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DamagedFileError(
                f"{storage.url(run.folder)}/recipe.json: tells of no training that this version knows ({reason}); "
                "restore it from a copy"
            ) from error
        rows = {source: open_source_rows(storage, name, "train", cache_bytes) for source, name in names.items()}
        return cls(objective, rows, phases, training.num_steps)

    def phase(self, step: int) -> tuple[int, int] | None:
        """Return the number of a step's phase, from 1, and how many there are; None where there are no phases."""
        if self.phases is None:
            return None
        return phase_of_step(self.phases, step - 1, self.num_steps) + 1, len(self.phases.phases)

    def weights(self, step: int) -> Mapping[str, float]:
        """Return the weight of each loss in a step, counted from 1."""
        return self.objective.weights(step - 1)

    def samples(
        self, numbers: np.ndarray, workers: Mapping[int, int], step: int, measure: Measure | None
    ) -> Iterator[SampleRow]:
        """Yield what samples hold, in their order.

        Args:
            numbers: int64 [n], of one data step.
            workers: The rank that has computed each, by its place in the global batch; empty if that is not known.
            step: Counted from 1; it decides which losses there are.
            measure: What computes the losses; None computes none.
        """
        size = self.objective.global_batch_size
        found = self.objective.samples(numbers)
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            every = [*pool.map(self._parts, found)]
        for sample, parts in zip(found, every, strict=True):
            row = SampleRow(
                sample=sample.number,
                worker=workers.get(sample.number % size),
                source=sample.source,
                position=sample.position,
                num_tokens=len(sample.tokens),
                parts=parts,
            )
            yield row if measure is None else self._measured(row, sample, step, measure)

    def _parts(self, sample: Sample) -> list[PartRow]:
        rows = self.rows[sample.source]
        return [self._part(sample, part, rows) for part in sample.parts]

    def _part(self, sample: Sample, part: Part, rows: SourceRows | None) -> PartRow:
        place = None if rows is None else rows.place(part.number)
        decode, tokens, target = self.objective.tokenizer.decode, sample.tokens[part.start : part.stop], sample.label
        if sample.is_target is not None:
            is_target = sample.is_target[part.start : part.stop]
            tokens, target = tokens[~is_target], decode(tokens[is_target].tolist())
        return PartRow(
            file=None if rows is None or place is None else rows.name(place),
            row=None if place is None else place.row,
            is_begun=part.is_begun,
            text=decode(tokens.tolist()),
            num_tokens=part.stop - part.start,
            target=target,
        )

    def _measured(self, row: SampleRow, sample: Sample, step: int, measure: Measure) -> SampleRow:
        """Return a row with the losses of the sample and of its parts."""
        device = next(measure.model.parameters()).device
        on_device = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in sample.batch.items()
        }
        sample = replace(sample, batch=on_device)
        weights, of_parts = self.weights(step), [dict[str, float]() for _ in row.parts]
        losses, num_targets = dict[str, float](), dict[str, float]()
        for name in weights:
            with torch.no_grad(), measure.precision:
                found = self.objective.part_losses(name, measure.model, sample)
            totals = [(float(one.total), one.num_targets) for one in found]
            num_targets[name] = sum(number for _, number in totals)
            if num_targets[name]:
                losses[name] = sum(total for total, _ in totals) / num_targets[name]
            for part, (total, number) in zip(of_parts, totals, strict=True):
                part.update({name: total / number} if number else {})
        parts = [replace(part, losses=of) for part, of in zip(row.parts, of_parts, strict=True)]
        return replace(row, parts=parts, losses=losses, num_targets=num_targets, loss=weighted(losses, weights))


def _names(storage: Storage, run: Run) -> dict[str, str]:
    """Return the prepared data of each source of a run.

    Raises:
        UserError: some of it is not there.
    """
    data_name = run.recipe["data"]
    names = sources_of(storage, data_name) if artifact.is_committed(storage, data_name) else {"": data_name}
    for source, name in names.items():
        if not artifact.is_committed(storage, name):
            of = f"source {source}: " if source else ""
            raise UserError(
                f"{of}{storage.url(name)}: the data that run {run.name} was trained on is not there; restore that "
                f"folder, or run its `{run.recipe['command']}` again, which prepares it anew"
            )
    return names


def _objective(
    storage: Storage, recipe: Mapping[str, Any], training: TrainingConfig, names: Mapping[str, str], cache_bytes: int
) -> tuple[Pretraining | TokenFinetuning, ObjectiveConfig | None]:
    """Return what the recipe says is learned, and its phases; None for a task."""
    seed = recipe["seed"]
    if recipe["command"] == "finetune":
        task: TaskConfig = TypeAdapter(TaskConfig).validate_python(recipe["task"])
        return finetuning(open_examples(storage, names[""], cache_bytes), training, seed, task), None
    phases = ObjectiveConfig.model_validate(recipe["objective"])
    # of a source, name and weight alone decide its share
    sources = [SourceConfig(name=name, weight=weight) for name, weight in sorted(recipe.get("mixture", {}).items())]
    data = MixedData({source: open_tokens(storage, name, cache_bytes) for source, name in names.items()})
    return Pretraining(data, phases, training, seed, sources), phases
