"""What a start imports is imported once, early, and without collections of garbage."""

import gc
import importlib
import runpy
import sys
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from modules import child_process
from orchestrator.cluster import local
from orchestrator.cluster.quick_imports import imported_train, quick_imports
from orchestrator.training.pretraining import PreparedText


def test_fork_server_imports_all_of_a_worker_without_a_collection_and_lets_none_look_at_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enabled, frozen, ends = dict[str, bool](), [], []
    monkeypatch.setattr(child_process, "end_with_parent", lambda *number: ends.append((*number, len(enabled))))
    monkeypatch.setattr(importlib, "import_module", lambda name: enabled.update({name: gc.isenabled()}))
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(len(enabled)))
    runpy.run_module("orchestrator.cluster.preloaded")
    assert set(enabled.values()) == {False}
    assert {"orchestrator.training.train", local._worker.__module__, PreparedText.__module__} <= set(enabled)
    assert frozen == [len(enabled)]
    assert ends == [(0,), (0, len(enabled))]  # with its driver from before the first import to after the last
    assert gc.isenabled()


class Probe:
    """Stands first among what finds modules, and refuses one of them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.collects: bool | None = None

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name == self.name:
            self.collects = gc.isenabled()
            raise ImportError(name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("what", "imports"),
    [
        ("orchestrator.training.train", imported_train),
        # the first of the two in a process of Ray: a worker, or the controller
        ("ray.train.torch", partial(importlib.import_module, "orchestrator.cluster.ray_worker")),
    ],
)
def test_a_worker_imports_without_a_collection_and_collects_again_if_that_fails(
    what: str, imports: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = Probe(what)
    monkeypatch.setattr(sys, "meta_path", [probe, *sys.meta_path])
    for name in (what, "orchestrator.cluster.ray_worker"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ImportError):
        imports()
    assert probe.collects is False
    assert gc.isenabled()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_worker_on_ray_reads_its_job_without_a_collection_and_trains_with_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from orchestrator.cluster import ray_worker

    seen = []
    for name in ("end_with", "check_gpu", "_runtime"):
        monkeypatch.setattr(ray_worker, name, lambda *_: None)
    monkeypatch.setattr(ray_worker.ray, "get", lambda job: seen.append((job, gc.isenabled())))
    monkeypatch.setattr(gc, "freeze", lambda: seen.append(("frozen", gc.isenabled())))
    monkeypatch.setattr(ray_worker, "imported_train", lambda: lambda *_: seen.append(("trained", gc.isenabled())))
    ray_worker.work({"job": "job read", "mailbox": None, "driver": None})
    assert seen == [("job read", False), ("frozen", True), ("trained", True)]


def test_collections_stay_off_where_they_were_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
