"""What nothing refers to is listed and removed, and never what is held, read by others or still wanted."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from living_driver import living_driver
from pipelines import SmallPipeline

from orchestrator.artifacts.recipe import fingerprint
from orchestrator.checkpoints.attempt import STAGES
from orchestrator.cli.program import main
from orchestrator.errors import StageError, UserError
from orchestrator.runs.lease import holder, lease
from orchestrator.runs.prune import Leftovers, find_leftovers, remove_data, remove_folders
from orchestrator.storage.store import Storage


@pytest.fixture(params=["local", "memory"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallPipeline]:
    root = None if request.param == "local" else f"memory://prune-{tmp_path.name}"
    made = SmallPipeline(tmp_path, root=root)
    yield made
    made.storage.remove("")


@pytest.fixture
def local(tmp_path: Path) -> SmallPipeline:
    return SmallPipeline(tmp_path)


def listed(storage: Storage, *names: str) -> dict[str, str]:
    """Return the folders that may go, and why."""
    return {one.path: one.why for one in find_leftovers(storage, names).folders}


def removed(storage: Storage, found: Leftovers) -> dict[str, str | None]:
    return {one.path: why for one, why in remove_folders(storage, found.folders)}


def folder_of(small: SmallPipeline, stage: str, suffix: str = "") -> str:
    """Return the folder of a stage as it is configured now."""
    return f"runs/{small.name}/{stage}-{small.planner().recipes[stage].fingerprint[:8]}{suffix}"


def filled(storage: Storage, name: str) -> list[str]:
    """Return the children that are files or hold some; a store in memory keeps empty folders."""
    return [child for child in storage.list(name) if storage.bytes_below(f"{name}/{child}")]


def files(storage: Storage) -> dict[str, float]:
    place = storage.local_path()
    assert place is not None
    return {str(path): path.stat().st_mtime_ns for path in place.rglob("*")}


def test_after_a_run_nothing_may_go(small: SmallPipeline) -> None:
    small.run()
    assert listed(small.storage) == {}


def test_older_results_go_and_all_that_is_wanted_stays_done(small: SmallPipeline) -> None:
    small.run()
    old = {folder_of(small, "left"), folder_of(small, "both")}
    small.seeds["left"] = 7
    small.run()
    found = find_leftovers(small.storage)
    assert {one.path: one.why for one in found.folders} == dict.fromkeys(old, "an older result of the stage")
    assert all(one.num_bytes == small.storage.bytes_below(one.path) > 0 for one in found.folders)
    assert removed(small.storage, found) == dict.fromkeys(old)
    assert {state for state, _ in small.plan().values()} == {"done"}
    assert len(filled(small.storage, "runs/small")) == len(small.storage.list("stages")) + 1 == 5
    assert listed(small.storage) == {}


def test_a_setting_that_was_changed_back_keeps_its_result(small: SmallPipeline) -> None:
    small.run()
    small.seeds["left"] = 7
    small.run()
    small.seeds["left"] = 2
    assert small.run() == []
    assert listed(small.storage) == {}, "the newest result and the one that was asked for last"


def test_what_another_pipeline_has_found_done_stays(small: SmallPipeline) -> None:
    small.run()
    SmallPipeline(small.folder, "other", small.root).run()
    small.seeds.update(base=7, left=8)
    small.run()
    assert not small.storage.list("runs/other", folders_only=True), "all that it wants is in the first one's folder"
    assert listed(small.storage) == {}
    small.storage.remove("runs/other/stages.json")
    assert len(listed(small.storage)) == 4


def test_what_a_stage_of_another_pipeline_has_read_stays_without_any_other_record(small: SmallPipeline) -> None:
    small.run()
    base = folder_of(small, "base")
    other = SmallPipeline(small.folder, "other", small.root)
    other.seeds["right"] = 7
    other.run()
    small.storage.remove("runs/other/stages.json")
    small.seeds["base"] = 8
    small.run()
    assert base not in listed(small.storage)
    assert base in listed(small.storage, "other"), "with who has read it"


def test_a_forced_attempt_replaces_the_one_before(small: SmallPipeline) -> None:
    small.run()
    small.run(force=["right"])
    first, second = folder_of(small, "right"), folder_of(small, "right", "-2")
    assert listed(small.storage) == {first: f"made anew in {second}"}
    assert removed(small.storage, find_leftovers(small.storage)) == {first: None}
    assert small.storage.exists(f"{second}/model/COMMITTED")
    assert small.plan()["right"] == ("done", ())


def test_only_the_newest_of_the_unfinished_attempts_stays(small: SmallPipeline) -> None:
    small.run()
    small.children.before["right"] = lambda _: 1
    failed = []
    for seed in (7, 8):
        small.seeds["right"] = seed
        with pytest.raises(StageError):
            small.run()
        failed.append(folder_of(small, "right"))
    assert listed(small.storage) == {failed[0]: "not finished, and the stage was begun anew"}


def test_an_older_result_stays_where_the_newest_one_is_gone(small: SmallPipeline) -> None:
    small.run()
    old = folder_of(small, "right")
    small.seeds["right"] = 7
    small.run()
    small.storage.remove(f"{folder_of(small, 'right')}/model")
    assert old not in listed(small.storage)


def older_result(small: SmallPipeline) -> tuple[str, str]:
    """Return folder and fingerprint of a result that may go."""
    small.run()
    path, key = folder_of(small, "right"), small.planner().recipes["right"].fingerprint
    small.seeds["right"] = 7
    small.run()
    assert list(listed(small.storage)) == [path]
    return path, key


@pytest.mark.parametrize("above", ["stages", "runs"])
def test_what_a_driver_holds_is_not_listed_and_not_removed(above: str, small: SmallPipeline) -> None:
    path, key = older_result(small)
    found = find_leftovers(small.storage)
    with lease(small.storage, key if above == STAGES else path.removeprefix("runs/"), above=above):
        assert listed(small.storage) == {}
        assert removed(small.storage, found) == {path: "a driver runs it"}
    assert small.storage.exists(f"{path}/model/COMMITTED")
    assert small.storage.exists(f"stages/{key}/done.json")
    assert removed(small.storage, found) == {path: None}


def test_nobody_begins_a_stage_while_it_is_removed(small: SmallPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    path, key = older_result(small)
    remove, seen = Storage.remove, []

    def remove_seen(self: Storage, name: str) -> None:
        if name == f"stages/{key}/done.json" or (name.startswith(path) and "lease" not in name):
            seen.append((name, holder(self, key, STAGES), holder(self, path.removeprefix("runs/"))))
        remove(self, name)

    monkeypatch.setattr(Storage, "remove", remove_seen)
    assert removed(small.storage, find_leftovers(small.storage)) == {path: None}
    assert seen[0][0] == f"stages/{key}/done.json"
    assert seen[-1][0] == f"{path}/stage.json"
    assert all(stage for _, stage, _ in seen)
    assert all(run for _, _, run in seen[:-1]), "both leases are held"


def test_what_was_used_again_since_it_was_listed_stays(small: SmallPipeline) -> None:
    path, _ = older_result(small)
    found = find_leftovers(small.storage)
    small.seeds["right"] = 3
    small.storage.remove(f"{path}/model")
    assert "right" in small.run(), "made anew in the same folder"
    assert removed(small.storage, found) == {path: "it has been used since it was listed"}
    assert small.plan()["right"] == ("done", ())


def test_all_of_a_pipeline_stays_while_one_of_its_stages_runs(small: SmallPipeline) -> None:
    path, _ = older_result(small)
    with lease(small.storage, small.planner().recipes["base"].fingerprint, above=STAGES):
        assert listed(small.storage) == {}
        assert listed(small.storage, "small") == {}
    assert list(listed(small.storage)) == [path]


class Killed(Exception):
    """Ends a removal at any of its steps."""


def kill_at(patch: pytest.MonkeyPatch, number: int, *places: str) -> None:
    """Let the removal of so many things below these places be the last, and fail."""
    remove, names = Storage.remove, []

    def remove_some(self: Storage, name: str) -> None:
        if name.startswith(places) and "/lease" not in name:
            names.append(name)
            if len(names) == number:
                raise Killed
        remove(self, name)

    patch.setattr(Storage, "remove", remove_some)


def is_killed(small: SmallPipeline, number: int, patch: pytest.MonkeyPatch) -> bool:
    """Remove an older result until the kill, look at what is left, and remove that; return whether it was killed."""
    path, key = older_result(small)
    kill_at(patch, number, path, f"stages/{key}/")
    was_killed = True
    with suppress(Killed):
        remove_folders(small.storage, find_leftovers(small.storage).folders)
        was_killed = False
    patch.undo()
    newer, small.seeds["right"] = folder_of(small, "right"), 3
    is_whole = all(small.storage.exists(f"{path}/model/{name}") for name in ("model.safetensors", "COMMITTED"))
    assert is_whole or small.plan()["right"][0] == "run"
    assert is_whole or not small.storage.exists(f"stages/{key}/done.json")
    assert is_whole or not small.storage.exists(f"stages/{key}/begun.json"), "what is continued is whole"
    removed(small.storage, find_leftovers(small.storage))
    assert small.storage.list(path) == small.storage.list(f"stages/{key}", hidden=True) == []
    assert small.storage.exists(f"{newer}/model/COMMITTED")
    return was_killed


def test_a_removal_killed_anywhere_leaves_nothing_that_looks_done(tmp_path: Path) -> None:
    number = 1
    while is_killed(SmallPipeline(tmp_path, root=str(tmp_path / f"out{number}")), number, pytest.MonkeyPatch()):
        number += 1
    assert number > 5


def write_run(storage: Storage, name: str, **texts: Any) -> None:
    recipe = {"command": "pretrain", "data": texts.get("data", f"data/of-{name}"), "training": {"num_steps": 1}}
    storage.write_bytes(f"runs/{name}/recipe.json", json.dumps(recipe).encode())
    storage.write_bytes(f"runs/{name}/config.yaml", f"model:\n  path: {texts.get('reads')}\n".encode())
    storage.write_bytes(f"runs/{name}/checkpoints/step_00000001/part", b"12345")


def test_runs_outside_pipelines_go_only_if_named_and_read_by_none(small: SmallPipeline) -> None:
    storage = small.storage
    for name in ("alone", "hand/made", "read"):
        write_run(storage, name)
    write_run(storage, "reader", reads=storage.url("runs/read/model"))
    assert listed(storage) == {}
    assert listed(storage, "alone", "hand/made") == {"runs/alone": "named", "runs/hand/made": "named"}
    found = find_leftovers(storage, ["read"])
    assert (found.folders, found.stay) == ((), ("read: stays; runs/reader refers to it",))
    assert set(listed(storage, "read", "reader")) == {"runs/read", "runs/reader"}
    assert removed(storage, find_leftovers(storage, ["alone", "hand/made"])).keys() == {"runs/alone", "runs/hand/made"}
    assert storage.list("runs") == ["read", "reader"]


def test_a_named_pipeline_goes_with_all_its_stages_but_those_that_a_run_reads(small: SmallPipeline) -> None:
    small.run()
    base = folder_of(small, "base")
    write_run(small.storage, "reader", reads=f"elsewhere/{base}/model")
    write_run(small.storage, "small/by_hand")
    found = find_leftovers(small.storage, ["small"])
    assert found.stay == (f"{base.removeprefix('runs/')}: stays; runs/reader refers to it",)
    assert set(removed(small.storage, found).values()) == {None}
    assert filled(small.storage, "runs/small") == [base.rpartition("/")[2], "by_hand"]
    assert small.storage.list("stages") == [small.planner().recipes["base"].fingerprint]


def test_a_name_that_is_not_there_is_told_with_the_nearest_one(small: SmallPipeline) -> None:
    small.run()
    with pytest.raises(UserError, match="names=smal: no such run .*did you mean small?"):
        find_leftovers(small.storage, ["smal"])


def test_prepared_data_of_no_run_and_no_stage_is_listed_and_removed_apart(small: SmallPipeline) -> None:
    storage = small.storage
    write_run(storage, "old", data="data/files-1")
    for name in ("files-1", "files-2", "files-3"):
        storage.write_bytes(f"data/{name}/COMMITTED", b"x")
    storage.write_bytes("stages/0123456789abcdef/begun.json", json.dumps({"path": "runs/p/s-01234567"}).encode())
    found = find_leftovers(storage)
    assert [one.path for one in found.data] == ["data/files-2", "data/files-3"]
    write_run(storage, "new", data="data/files-3")
    ended = {one.path: why for one, why in remove_data(storage, found.data)}
    assert ended == {"data/files-2": None, "data/files-3": "it has been used since it was listed"}
    assert storage.list("data") == ["files-1", "files-3"]
    assert [one.path for one in find_leftovers(storage, ["old"]).data] == ["data/files-1"]


def test_a_damaged_or_edited_record_is_no_reason_to_remove_a_folder(local: SmallPipeline) -> None:
    path, key = older_result(local)
    stage = local.storage.read_bytes(f"{path}/stage.json")
    for damaged in (b"{", stage.replace(b'"seed": 3', b'"seed": 4')):
        assert damaged != stage
        local.storage.write_bytes(f"{path}/stage.json", damaged)
        assert listed(local.storage).keys() - {f"stages/{key}"} == set()


def test_the_record_of_a_folder_that_is_gone_goes(small: SmallPipeline) -> None:
    path, key = older_result(small)
    small.storage.remove(path)
    assert listed(small.storage) == {f"stages/{key}": "its folder is gone"}
    assert removed(small.storage, find_leftovers(small.storage)) == {f"stages/{key}": None}
    assert not small.storage.exists(f"stages/{key}")


def test_the_command_lists_and_writes_nothing_until_it_is_told(
    local: SmallPipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path, _ = older_result(local)
    local.storage.write_bytes("data/files-1/COMMITTED", b"x")
    before = files(local.storage)
    assert main(["runs", "prune", f"storage.root={local.root}"]) == 0
    said = capsys.readouterr().out
    assert files(local.storage) == before
    assert f"{path} " in said
    assert "an older result of the stage" in said
    assert "nothing was removed; apply=true removes it" in said
    assert main(["runs", "prune", f"storage.root={local.root}", "apply=true"]) == 0
    assert "removed 1 folders" in capsys.readouterr().out
    assert not local.storage.exists(path)
    assert local.storage.exists("data/files-1")
    assert main(["runs", "prune", "small", f"storage.root={local.root}", "apply=true", "prepared_data=true"]) == 0
    assert local.storage.list("runs") == local.storage.list("stages") == local.storage.list("data") == []
    assert main(["runs", "prune", "small", f"storage.root={local.root}"]) == 2


def write_stages(root: Path, number: int) -> None:
    """Write so many finished attempts at one stage, as a driver of long ago has left them."""
    ended = {**living_driver(), "renewed": 0.0}
    for seed in range(number):
        recipe = {"command": "pretrain", "settings": {"seed": seed}, "inputs": {}}
        key, stages, began = fingerprint(recipe), root / "stages", {"stage": "s", "recipe": recipe, "time": seed}
        path = f"runs/p/s-{key[:8]}"
        done = {"path": path, "recipe": recipe, "inputs": {}, "result": {"name": f"{path}/model", "digest": "x"}}
        texts = {
            root / path / "stage.json": began,
            root / path / "model/COMMITTED": "x",
            stages / key / "begun.json": {"path": path, "inputs": {}},
            stages / key / "done.json": done,
            stages / key / "lease/0000000001.json": ended,
        }
        for place, content in texts.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(content))


def test_requests_grow_with_the_number_of_stages_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, counts = Storage._run, []

    def counted(self: Storage, *given: Any) -> Any:
        counts.append(given[0])
        return run(self, *given)

    monkeypatch.setattr(Storage, "_run", counted)
    needed = {}
    for number in (50, 1000):
        write_stages(tmp_path / str(number), number)
        counts.clear()
        found = find_leftovers(Storage(str(tmp_path / str(number))))
        assert len(found.folders) == number - 1
        needed[number] = len(counts)
    few = Storage(str(tmp_path / "50"))
    counts.clear()
    removed(few, find_leftovers(few))
    to_remove = len(counts) - needed[50]
    assert needed[1000] <= 10 * 1000 + 10
    assert needed[1000] <= 20 * needed[50]
    assert to_remove <= 36 * 49
