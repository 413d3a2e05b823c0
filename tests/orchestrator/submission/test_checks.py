"""What is said before anything is sent: secrets, places that are lost with the job, files that stay here."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from requests_here import ROOT, request

from orchestrator.configuration.commands import PretrainConfig
from orchestrator.errors import ConfigError
from orchestrator.submission.checks import check
from orchestrator.submission.package import Options, Project, read_options
from orchestrator.submission.request import Request


def checked(command: str, *overrides: str, options: Options | None = None) -> list[str]:
    return check(request(command, *overrides), {}, None, options)


def refusals(command: str, *overrides: str, options: Options | None = None) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        checked(command, *overrides, options=options)
    return str(refused.value).splitlines()


@pytest.fixture(scope="module")
def reading() -> Request:
    """A request that reads files; composed once, since that takes long."""
    return request("pretrain", ROOT, "run.name=x", "data=files", "data.path=x")


def notes_on(reading: Request, path: object, *files: str) -> list[str]:
    """Check a request that reads `path`, while `files` of this folder are sent."""
    (config,) = reading.configs
    assert isinstance(config, PretrainConfig)
    changed = config.model_copy(update={"data": config.data.model_copy(update={"path": (str(path),)})})
    return check(replace(reading, configs=(changed,)), {}, Project(Path.cwd(), files, 0, ()), None)


def test_place_that_is_deleted_with_the_job_is_refused() -> None:
    (line,) = refusals("pretrain")
    assert line.startswith("storage.root=outputs: a relative path lies in the job's own folder on the cluster")
    lines = refusals("predict", "model.path=s3://b/m", "data=files", "data.path=s3://b/x.jsonl", "output=x.jsonl")
    assert [line.partition(":")[0] for line in lines] == ["output=x.jsonl"]
    assert checked("pretrain", "storage.root=/mnt/shared/outputs", "run.name=x", "cluster=torchrun") == []


def test_input_that_stays_here_is_refused(reading: Request, empty_folder: Path) -> None:
    (empty_folder / "texts").mkdir()
    for name in ("texts/a.txt", "b.txt"):
        (empty_folder / name).write_text("text")
    for path in ("texts/a.txt", "texts", "texts/*.txt", "./b.txt"):
        file = "b.txt" if "b.txt" in path else "texts/a.txt"
        with pytest.raises(ConfigError, match=f"^data.path={re.escape(path)}: {file} is not among the files that are"):
            notes_on(reading, path)
    for path in ("texts/a.txt", "texts", "texts/*.txt", "s3://bucket/x.txt", "/mnt/x.txt", "./nope.txt"):
        assert notes_on(reading, path, "texts/a.txt") == []


def test_input_that_stays_here_is_found_among_the_sources_of_a_mixture(reading: Request, empty_folder: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (empty_folder / name).write_text("text")
    (config,) = reading.configs
    assert isinstance(config, PretrainConfig)
    sources = [{"name": name, "path": [f"{name}.txt"]} for name in "ab"]
    data = type(config.data).model_validate({"source": "files", "sources": sources})
    mixed = replace(reading, configs=(config.model_copy(update={"data": data}),))
    with pytest.raises(ConfigError, match=r"^data\.sources\.1\.path=b\.txt: b\.txt is not among the files"):
        check(mixed, {}, Project(Path.cwd(), ("a.txt",), 0, ()), None)


def test_input_of_which_only_a_part_is_sent_is_refused(reading: Request, empty_folder: Path) -> None:
    (empty_folder / "texts" / "__pycache__").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "c.txt", "__pycache__/d.pyc"):
        (empty_folder / "texts" / name).write_text("text")
    for path in ("texts", "texts/*.txt", "texts/**"):
        with pytest.raises(ConfigError, match=f"^data.path={re.escape(path)}: texts/b.txt and 1 more are not among"):
            notes_on(reading, path, "texts/a.txt")


def test_input_of_a_pipelines_stage_that_stays_here_is_refused(reading: Request, empty_folder: Path) -> None:
    (empty_folder / "x").write_text("text")
    pipeline = replace(reading, configs=())
    with pytest.raises(ConfigError, match=r"^pipeline.stages.base: data.path=x: x is not among the files"):
        check(pipeline, {"pipeline.stages.base: ": reading.configs[0]}, None, None)


@pytest.mark.parametrize("path", ["a.txt", "*.txt", ""])
def test_path_of_this_machine_is_noted(
    path: str, reading: Request, empty_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for folder in (elsewhere, empty_folder):
        (folder / "a.txt").write_text("text")
    (note,) = notes_on(reading, elsewhere / path)
    assert note.startswith(f"data.path={elsewhere / path}: is a path of this machine; the nodes have it only if")
    (note,) = notes_on(reading, empty_folder / path, "a.txt")
    assert note.endswith(f"what is sent of this folder is at {path or '.'} there, so give that")
    assert notes_on(reading, "/nowhere/a.txt") == []


@pytest.mark.parametrize(
    "secret",
    [
        "data.path=https://host/x.txt?X-Amz-Signature=canary12345",
        "data.path=https://user:canary12345@host/x.txt",
        "data.path=s3://AKIACANARY:canary12345@bucket/x.txt",
        "data.path=hf://canary12345@datasets/x.txt",
        "tracking.tags=[canary12345]",
    ],
)
def test_secret_in_an_override_is_refused_and_not_repeated(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary12345")
    (line,) = refusals("pretrain", ROOT, "data=files", "data.path=x", secret)
    assert line.startswith(f"{secret.partition('=')[0]}: holds a password, a key or a signed URL")
    assert "canary" not in line.lower()


def test_secret_in_the_users_options_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    option = tmp_path / "experiment" / "mine.yaml"
    option.write_text("data:\n  path: https://host/x.txt?sig=canary12345\n")
    (line,) = refusals("pretrain", ROOT, options=read_options(tmp_path))
    assert str(option) in line
    assert "canary" not in line
