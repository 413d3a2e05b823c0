"""A pipeline whose driver is killed again and again: each stage is completed once, with the same final weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from broken_pipeline import PIPELINE_SECONDS, Stored, killed_and_continued, processes_of
from broken_run import BrokenRun
from pipelines import write_eight_stages
from ray_nodes import ray_nodes

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(7200)]
STAGES = ["alone", "base", "more1", "more2", "more3", "score1", "score2", "score3"]


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    conf = write_eight_stages(tmp_path_factory.mktemp("eight"))
    return ["run", "--config-dir", str(conf), "+pipeline=eight"]


@pytest.fixture(scope="module")
def undisturbed(eight: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The results of the same pipeline without a disturbance."""
    root = tmp_path_factory.mktemp("undisturbed")
    with BrokenRun([*eight, f"storage.root={root}"]) as run:
        assert run.end(PIPELINE_SECONDS) == 0, run.said
    assert set(Stored(root).starts().values()) == {1}
    return Stored(root).results()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def where(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    if request.param == "local":
        yield ["cluster=local"]
        return
    with ray_nodes(2) as nodes:
        yield ["cluster=ray", f"cluster.address={nodes.address}"]


@pytest.mark.parametrize(("seed", "num_kills"), [(1, 3), (2, 10)])
def test_pipeline_killed_at_random_moments_completes_each_stage_once_with_the_same_weights(
    eight: list[str], undisturbed: dict[str, bytes], where: list[str], tmp_path: Path, seed: int, num_kills: int
) -> None:
    stored = Stored(tmp_path / "out")
    killed_and_continued([*eight, *where, f"storage.root={stored.root}"], stored, len(STAGES), seed, num_kills)
    assert sorted(stored.done()) == STAGES
    assert stored.results() == undisturbed
    assert not processes_of(stored.root)
