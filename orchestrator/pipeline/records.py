"""What the driver writes of stages, beside what `runs.stages` reads: records, results and logs.

Results are known by their digests: a stage is done only if its record has its recipe and its result is there, whole.
"""

import time
from collections.abc import Mapping
from typing import Any

from orchestrator.artifacts import artifact
from orchestrator.artifacts.digests import digest
from orchestrator.checkpoints.attempt import Attempt
from orchestrator.errors import ArtifactError
from orchestrator.pipeline import places
from orchestrator.pipeline.graph import Stage
from orchestrator.runs.input_identity import named_inputs
from orchestrator.runs.json_files import write_object
from orchestrator.runs.stages import BEGUN, DONE, STAGE, claim
from orchestrator.storage.errors import NotFoundError
from orchestrator.storage.store import Storage

LOG, GRAPH = "log.txt", "graph.json"


def write_begun(storage: Storage, fingerprint: str, stage: Stage, path: str, recipe: Any, inputs: Any) -> None:
    """Record where a stage runs, before anything of it is written."""
    pipeline, about = places.run_name(path).partition("/")[0], {"stage": stage.name, "time": time.time()}
    begun = {**about, "path": path, "pipeline": pipeline, "inputs": inputs}
    write_object(
        storage, f"{path}/{STAGE}", {**about, "recipe": recipe, "inputs": named_inputs(stage.config, stage.links)}
    )
    write_object(storage, f"{claim(fingerprint)}/{BEGUN}", begun)


def write_done(storage: Storage, fingerprint: str, attempt: Attempt, record: Mapping[str, Any]) -> None:
    """Record that a stage is done.

    Raises:
        LeaseLostError: another driver has taken the stage over, and nothing is recorded.
    """
    attempt.check(storage)
    content = {**record, "attempt": attempt.number, "time": time.time()}
    write_object(storage, f"{claim(fingerprint)}/{DONE}", content)


def found_result(storage: Storage, command: str, path: str, name: str | None = None) -> dict[str, str]:
    """Return the name and the digest of a stage's result.

    Args:
        storage: Where it is.
        command: What has made it.
        path: The stage's folder.
        name: The result, where the command chooses its place.

    Raises:
        ArtifactError: it is not there, or damaged.
    """
    name = places.result_name(command, path) or name
    if name is None:
        raise ArtifactError(f"{storage.url(path)}: nothing says where its result is")
    if places.is_artifact(command):
        artifact.verify_sizes(storage, name)
        return {"name": name, "digest": artifact.manifest_digest(storage, name)}
    try:
        with storage.open_read(name) as stream:
            entry = digest(stream)
    except NotFoundError:
        raise ArtifactError(f"{storage.url(name)}: is not there") from None
    if not entry.num_bytes:
        raise ArtifactError(f"{storage.url(name)}: is empty")
    return {"name": name, "digest": entry.xxh3_128}


def check_result(storage: Storage, command: str, record: Mapping[str, Any]) -> None:
    """Raise ArtifactError unless the result of a record is there, whole and the one that was recorded."""
    wanted = record["result"]
    found = found_result(storage, command, record["path"], wanted["name"])
    if found["digest"] != wanted["digest"]:
        raise ArtifactError(f"{storage.url(found['name'])}: is not what the stage has made (another digest)")


def clear(storage: Storage, command: str, path: str) -> None:
    """Remove what an earlier attempt has left of a result, so that the command makes it anew.

    A training goes on from its checkpoints. If it is complete and its model is damaged, the model and the metrics are
    removed, and it writes both anew from the last checkpoint.
    """
    result = places.result_name(command, path)
    if result is None:
        return
    if command not in places.TRAINS:
        storage.remove(places.leftover(command, path))
        return
    if not storage.exists(f"{path}/metrics.json"):
        return
    try:
        found_result(storage, command, path)
        artifact.verify(storage, result) if storage.is_local else None
    except ArtifactError:
        storage.remove(result)
        storage.remove(f"{path}/metrics.json")


def write_graph(storage: Storage, path: str, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Write the graph of a pipeline beside a report on it, and return where."""
    write_object(storage, f"{path}/{GRAPH}", {"stages": dict(stages)})
    return storage.url(f"{path}/{GRAPH}")
