"""`evaluation.json`: where it is, and that nothing in it is lost."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from foreign_models import write_model

from orchestrator.artifacts.model_folders import FoundModel, find_model
from orchestrator.errors import DamagedFileError, RefusedError
from orchestrator.evaluation.record import Evaluation, record
from orchestrator.storage.store import Storage


@pytest.fixture
def model(empty_folder: Path) -> FoundModel:
    write_model(Path("model"), "llama2", end=2)
    return find_model("./model")


def evaluation(number: int = 0, subject: str = "harness/capitals") -> Evaluation:
    return Evaluation(subject, {"num_fewshot": number}, {"acc": number / 100}, {"batch_size": 4})


def kept(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def figures(file: Path) -> dict[str, list[float]]:
    return {name: sorted(entry["metrics"]["acc"] for entry in of.values()) for name, of in kept(file).items()}


def test_it_is_beside_the_model_and_says_which_model_it_was(model: FoundModel) -> None:
    assert record("./model", model, Storage("outputs"), [evaluation()]) == str(Path("model/evaluation.json").resolve())
    ((entry,),) = (of.values() for of in kept(Path("model/evaluation.json")).values())
    assert entry["model"]["path"] == "./model"
    assert [name for name, _ in entry["model"]["files"]] == ["config.json", "model.safetensors"]
    assert (entry["settings"], entry["metrics"]) == ({"num_fewshot": 0}, {"acc": 0.0})
    assert not Path("outputs").exists()


def test_another_setting_or_subject_is_added_and_the_same_one_replaced(model: FoundModel) -> None:
    for one in (evaluation(0), evaluation(5), evaluation(0), evaluation(0, "classification")):
        record("./model", model, Storage("outputs"), [one])
    assert figures(Path("model/evaluation.json")) == {"harness/capitals": [0.0, 0.05], "classification": [0.0]}


def test_another_model_in_the_same_folder_takes_nothing_away(model: FoundModel) -> None:
    record("./model", model, Storage("outputs"), [evaluation()])
    config = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**config, "other": 1}))
    record("./model", model, Storage("outputs"), [evaluation()])
    assert figures(Path("model/evaluation.json")) == {"harness/capitals": [0.0, 0.0]}


def test_of_many_writers_at_once_none_loses_what_another_has_written(model: FoundModel) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: record("./model", model, Storage("outputs"), [evaluation(n)]), range(24)))
    assert figures(Path("model/evaluation.json"))["harness/capitals"] == [number / 100 for number in range(24)]


def test_of_a_model_from_a_hub_it_is_below_the_storage_root(model: FoundModel) -> None:
    for number in range(2):
        where = record("some/model", replace(model, commit="a" * 40), Storage("outputs"), [evaluation(number)])
    assert Path(where).parent.parent == Path("outputs/evaluations").resolve()
    assert figures(Path(where)) == {"harness/capitals": [0.0, 0.01]}
    other = record("some/model", replace(model, commit="b" * 40), Storage("outputs"), [evaluation()])
    assert other != where


def test_of_a_model_that_may_not_be_written_to_it_is_below_the_storage_root(
    model: FoundModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Storage.write_bytes

    def refused(self: Storage, name: str, data: bytes) -> None:
        if name.startswith("model/"):
            raise RefusedError("permission denied")
        write(self, name, data)

    monkeypatch.setattr(Storage, "write_bytes", refused)
    where = record("./model", model, Storage("outputs"), [evaluation()])
    assert where.startswith(str(Path("outputs/evaluations/model-").resolve()))
    assert not Path("model/evaluation.json").exists()


def test_a_remote_storage_root_has_a_file_for_each_evaluation(model: FoundModel) -> None:
    found, root = replace(model, commit="c" * 40), Storage("memory://evaluated")
    for number in range(2):
        where = record("some/model", found, root, [evaluation(number), evaluation(number, "classification")])
    folder = where.removeprefix(root.url()).strip("/")
    files = [json.loads(root.read_bytes(f"{folder}/{name}")) for name in root.list(folder)]
    assert sorted(next(iter(file)) for file in files) == ["classification"] * 2 + ["harness/capitals"] * 2


def test_a_damaged_file_is_named_and_left_as_it_is(model: FoundModel) -> None:
    Path("model/evaluation.json").write_text("{")
    with pytest.raises(DamagedFileError, match="evaluation.json: damaged .*move it away, and evaluate again"):
        record("./model", model, Storage("outputs"), [evaluation()])
    assert Path("model/evaluation.json").read_text() == "{"
