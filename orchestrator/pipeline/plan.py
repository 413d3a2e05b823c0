"""For each stage: is it done, and if not, why not? Read from storage alone, without torch; nothing is written."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from modules.errors import InputError
from orchestrator.artifacts.recipe import fingerprint, identity
from orchestrator.checkpoints.attempt import STAGES
from orchestrator.checkpoints.names import newest_committed
from orchestrator.errors import ArtifactError, ConfigError, UserError
from orchestrator.pipeline import places, records
from orchestrator.pipeline.graph import Stage, linked
from orchestrator.pipeline.why import differences
from orchestrator.runs import lease
from orchestrator.runs.input_identity import Inputs
from orchestrator.runs.stages import attempt_folders, attempts, read_begun, read_done
from orchestrator.storage.store import Storage

State = Literal["done", "run", "resume", "depends"]


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a stage."""

    content: Mapping[str, Any]
    fingerprint: str


@dataclass(frozen=True)
class Judgement:
    """Whether a stage is done, and why it is not."""

    state: State
    """`depends`: done, unless what comes before turns out otherwise."""
    reasons: tuple[str, ...]
    path: str
    """Its folder: where the result is, or where it will be."""
    digest: str | None = None
    """Of the result, if it is done."""
    step: int = 0
    """After which a training would resume."""
    seconds: float | None = None
    """How long it took, if it is done."""

    @classmethod
    def done(cls, record: Mapping[str, Any]) -> "Judgement":
        """Return that of a stage with this record."""
        return cls("done", (), record["path"], record["result"]["digest"], seconds=record.get("seconds"))


def recipes_of(stages: Mapping[str, Stage], storage: Storage) -> dict[str, Recipe]:
    """Return the recipe of each stage.

    Raises:
        ConfigError: an input is not there; with a line for each.
    """
    inputs, found, mistakes = Inputs(storage), dict[str, Recipe](), list[str]()
    for name, stage in stages.items():
        links = {setting: _linked_recipe(value, found) for setting, value in stage.links.items()}
        try:
            content = {
                "command": stage.command,
                "settings": identity(stage.config),
                "inputs": inputs.identities(stage.config, links),
            }
            found[name] = Recipe(content, fingerprint(content))
        except (UserError, InputError, ArtifactError) as error:
            mistakes += [f"pipeline.stages.{name}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return found


def _linked_recipe(value: Sequence[str] | str, found: Mapping[str, Recipe]) -> Any:
    """Return the identity of a result by the recipe that makes it, whatever the stage is called."""
    if isinstance(value, str):
        return {"recipe": found[value].fingerprint if value in found else ""}
    return [_linked_recipe(name, found) for name in value]


class Planner:
    """Judges the stages of one pipeline."""

    def __init__(
        self, pipeline: str, storage: Storage, stages: Mapping[str, Stage], recipes: Mapping[str, Recipe]
    ) -> None:
        self.pipeline, self.storage, self.stages, self.recipes = pipeline, storage, stages, recipes

    def plan(self, forced: Collection[str]) -> dict[str, Judgement]:
        """Return a judgement of every stage, those that it needs first."""
        found: dict[str, Judgement] = {}
        for name in self.stages:
            found[name] = self.judge(name, found, name in forced)
        return found

    def judge(self, name: str, before: Mapping[str, Judgement], is_forced: bool = False) -> Judgement:
        """Return whether a stage is done.

        Args:
            name: The stage.
            before: Judgements of those that it needs.
            is_forced: Whether it runs although it is done.
        """
        recipe, command = self.recipes[name], self.stages[name].command
        record = read_done(self.storage, recipe.fingerprint)
        digests = self.input_digests(name, before)
        open_inputs = [of for of in self._inputs(name) if before[of].digest is None]
        if record is None:
            return self._to_run(name, digests, self._why(name))
        if record["recipe"] != recipe.content:
            return self._to_run(name, digests, ["the recipe in its record was edited"], record)
        if is_forced:
            return self._to_run(name, digests, ["forced"], record)
        try:
            records.check_result(self.storage, command, record)
        except ArtifactError as error:
            return self._to_run(name, digests, [f"its result is damaged or gone: {error}"], record, mends=True)
        if open_inputs:
            reason = f"done, unless {' or '.join(open_inputs)} comes out otherwise"
            return Judgement("depends", (reason,), record["path"])
        if others := [of for of in self._inputs(name) if self._is_another(of, record["inputs"], digests)]:
            return self._to_run(name, digests, [f"the result of {of} is another one" for of in others], record)
        return Judgement.done(record)

    def input_digests(self, name: str, before: Mapping[str, Judgement]) -> dict[str, str]:
        """Return the digests, as far as they are known, of the results that a stage reads, by their recipes."""
        return {self.recipes[of].fingerprint: digest for of in self._inputs(name) if (digest := before[of].digest)}

    def _inputs(self, name: str) -> list[str]:
        return [of for value in self.stages[name].links.values() for of in linked(value)]

    def _is_another(self, name: str, before: Mapping[str, str], now: Mapping[str, str]) -> bool:
        """Return whether the result of a stage is another one than a later stage has read."""
        key = self.recipes[name].fingerprint
        return before.get(key) != now.get(key)

    def _to_run(
        self,
        name: str,
        digests: Mapping[str, str],
        reasons: Sequence[str],
        record: Mapping[str, Any] | None = None,
        mends: bool = False,
    ) -> Judgement:
        """Return the judgement of a stage that is not done, with the folder in which it runs."""
        key = self.recipes[name].fingerprint
        begun = read_begun(self.storage, key)
        goes_on = begun is not None and _agree(begun["inputs"], digests)
        if record is not None and begun is not None and not mends:
            goes_on = goes_on and begun["path"] != record["path"]  # what is done is left as it is
        path = begun["path"] if begun is not None and goes_on else self._new_path(name)
        step = self._newest_step(name, path)
        return Judgement("resume" if step else "run", tuple(reasons), path, step=step)

    def _newest_step(self, name: str, path: str) -> int:
        if self.stages[name].command not in places.TRAINS:
            return 0
        return next(newest_committed(self.storage, places.run_name(path)), 0)

    def _new_path(self, name: str) -> str:
        number, key = 1, self.recipes[name].fingerprint
        while self.storage.exists(path := places.folder(self.pipeline, name, key, number)):
            number += 1
        return path

    def holder(self, name: str) -> Mapping[str, Any] | None:
        """Return the live driver that runs a stage now; None if there is none."""
        return lease.holder(self.storage, self.recipes[name].fingerprint, STAGES)

    def _why(self, name: str) -> list[str]:
        """Return what differs from the newest earlier attempt at a stage."""
        earlier = attempts(self.storage, self._earlier.get(name, ()))
        if not earlier:
            return ["never run before"]
        recipe = self.recipes[name].content
        if earlier[0]["recipe"] == recipe:
            return ["was begun and not finished"]
        made_by = {of: _linked_recipe(of, self.recipes) for of in self._inputs(name)}
        return differences(self.stages[name], recipe, earlier[0], made_by)

    @cached_property
    def _earlier(self) -> dict[str, list[str]]:
        """Earlier attempts by stage, listed once: the folder of a thousand stages has thousands of names."""
        return attempt_folders(self.storage, self.pipeline)


def held_by(holder: Mapping[str, Any]) -> str:
    """Return who runs a stage, as it is shown."""
    return f"process {holder['pid']} on {holder['host']}"


def _agree(before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Return whether two sets of digests differ in none that both know."""
    return all(now.get(key, digest) == digest for key, digest in before.items())
