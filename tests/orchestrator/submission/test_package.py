"""What of a folder is sent: the project's own files, the same for the same project, and none that hold secrets."""

import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from orchestrator.doctor.packages import PROJECT, TESTED, allowed_ranges, installed_version
from orchestrator.errors import UserError
from orchestrator.submission import package
from orchestrator.submission.lock_file import locked_packages, locked_versions
from orchestrator.submission.package import SETTINGS, read_options, read_project, write_package

SENT = ["code.py", "conf/experiment/mine.yaml", "conf/data/x.yaml", "pkg/data/inner.py", "pkg/outputs.py", "run.sh"]
STAYS = [
    *("data/corpus.txt", "outputs/runs/x/config.yaml", ".git/config", ".venv/bin/python", "venv/lib/x.py"),
    *("pkg/__pycache__/code.pyc", "ignored/x.bin", "pkg/also_ignored.bin", "wandb/run-1/x.wandb", "keep/here/x.txt"),
]
PYTHON = ".".join(map(str, sys.version_info[:2]))
PYDANTIC = installed_version("pydantic")
SECRET = [".env", "conf/.env.local", "keys/server.pem", "id_rsa", ".aws/credentials", "my_credentials.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*SENT, *STAYS, *SECRET):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".gitignore").write_text("ignored/\n*.bin\n!ignored/x.bin\n")
    (tmp_path / "keep" / ".gitignore").write_text("here\n")
    (tmp_path / "run.sh").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("is_repository", [False, True])
def test_project_is_sent_without_data_outputs_environments_secrets_and_what_gitignore_names(
    folder: Path, is_repository: bool
) -> None:
    if is_repository:
        (folder / ".git" / "config").unlink()
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    found = read_project(folder, 10**6)
    assert [*found.files] == sorted([*SENT, ".gitignore", "keep/.gitignore"])
    assert [*found.held_back] == sorted(SECRET)


def test_folder_of_a_repository_is_sent_without_what_its_top_ignores(folder: Path) -> None:
    (folder / ".git" / "config").unlink()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    (folder / "pkg" / ".env").touch()
    assert read_project(folder / "pkg", 10**6).files == ("outputs.py",)


def test_larger_project_is_refused_with_its_largest_files(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(bytes(3000))
    with pytest.raises(UserError) as refused:
        read_project(folder, 2000)
    assert "submit.max_bytes=2000" in str(refused.value)
    assert "weights.safetensors (3.00 kB)" in str(refused.value)
    assert ".gitignore" in str(refused.value)


def test_without_git_a_gitignore_is_not_overlooked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="git is not installed, which reads .gitignore"):
        read_project(folder, 10**6)
    for ignored in folder.rglob(".gitignore"):
        ignored.unlink()
    assert {*read_project(folder, 10**6).files} >= {*SENT}


def test_same_files_and_settings_make_the_same_package(folder: Path, tmp_path: Path) -> None:
    def made(name: str) -> bytes:
        to = tmp_path / "outputs" / name
        write_package(to, read_project(folder, 10**6), {"command": "x"}, read_options(folder / "conf"))
        return to.read_bytes()

    first = made("1.zip")
    (folder / "code.py").touch()
    assert made("2.zip") == first
    with zipfile.ZipFile(tmp_path / "outputs" / "1.zip") as archive:
        assert json.loads(archive.read(SETTINGS)) == {"command": "x"}
        assert archive.read("_submission/conf/experiment/mine.yaml") == b"conf/experiment/mine.yaml"
        assert archive.getinfo("run.sh").external_attr >> 16 & 0o111
    (folder / "code.py").write_text("changed")
    assert made("3.zip") != first


def test_options_are_sent_whatever_gitignore_says_but_no_secrets_nor_results(tmp_path: Path) -> None:
    sent = ["data/mine.yaml", "experiment/deep/x.yaml", "env/y.yaml"]
    for name in (*sent, "outputs/runs/x/config.yaml", ".venv/lib/z.yaml", "my_secrets.yaml", "experiment/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text("*.yaml\n")
    found = read_options(tmp_path)
    assert (sorted(sent), ["my_secrets.yaml"]) == ([*found.files], [*found.held_back])


def test_lock_file_is_packages_without_credentials(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"submit.environment=lock: there is no requirements.lock in "):
        locked_packages(tmp_path)
    lock = tmp_path / "requirements.lock"
    lock.write_text("# made by pip\ntorch==2.13.0  # why\n\nray[default]==2.60.0\n")
    assert locked_packages(tmp_path) == ["torch==2.13.0", "ray[default]==2.60.0"]
    lock.write_text("torch==2.13.0\nRay[default]==2.60.0 ; python_version > '3'\nx==1 ; python_version < '3'\n")
    assert locked_versions(locked_packages(tmp_path)) == {"torch": "==2.13.0", "ray": "==2.60.0"}
    for line in ("--index-url https://user:canary@host/simple", "x @ https://canary@host/x.whl", "-r other.txt"):
        lock.write_text(f"torch==2.13.0\n{line}\n")
        with pytest.raises(UserError) as refused:
            locked_packages(tmp_path)
        assert "canary" not in str(refused.value)


def settings(**changed: Any) -> dict[str, Any]:
    tested = {"ray": TESTED["ray"], "torch": TESTED["torch"]}
    allowed = {name: str(ranges) for name, ranges in allowed_ranges().items() if name in tested}
    ours = {"python": PYTHON, "version": installed_version(PROJECT)}
    return {"environment": "none", "tested": tested, "allowed": allowed, "locked": {}, **ours, **changed}


@pytest.fixture
def entry() -> Any:
    spec = importlib.util.spec_from_file_location("entry", Path(package.__file__).with_name("entry.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_cluster_with_the_tested_versions_has_no_problem(entry: Any) -> None:
    assert entry._problem(settings()) == ""
    assert list(entry._differences(settings())) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tested": {"nope-at-all": "1.0"}}, "not installed on the cluster: nope-at-all==1.0; install these there"),
        ({"allowed": {"nope-at-all": ">=2"}}, "not installed on the cluster: nope-at-all>=2; install these there"),
        (
            {"allowed": {"pydantic": "<1"}, "environment": "image"},
            f"of another version on the cluster: pydantic {PYDANTIC}",
        ),
        (
            {"locked": {"ray": "==2.59.0"}, "environment": "lock"},
            " has other versions than requirements.lock: ray ",
        ),
        ({"allowed": {"ray": "<2"}}, "of another version on the cluster: ray 2.60.0 (needed: <2)"),
    ],
)
def test_cluster_that_lacks_packages_is_told_apart(changed: dict[str, Any], said: str, entry: Any) -> None:
    assert said in entry._problem(settings(**changed))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tested": {"ray": "2.60.9"}}, "the cluster has ray 2.60.0 (tested: 2.60.9)"),
        ({"python": "3.99"}, f"the cluster has Python {PYTHON}, and the machine that submitted this 3.99"),
        ({"version": "9.9"}, "the cluster has gpt-orchestrator 0.1.0, and the machine that submitted this 9.9, which"),
    ],
)
def test_other_versions_that_are_allowed_are_said(
    changed: dict[str, Any], said: str, entry: Any, empty_folder: Path
) -> None:
    (line,) = entry._differences(settings(**changed))
    assert line.startswith(said)


def test_version_of_a_program_that_is_sent_is_that_of_who_submits(entry: Any, empty_folder: Path) -> None:
    (empty_folder / "orchestrator").mkdir()
    assert list(entry._differences(settings(version="9.9"))) == []


@pytest.mark.parametrize(
    ("environment", "remedy"), [("none", "submit from a checkout"), ("image", "start the cluster with an image")]
)
def test_cluster_without_the_package_is_told_what_to_do(
    environment: str, remedy: str, entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry.importlib.util, "find_spec", lambda _: None)
    said = entry._problem(settings(environment=environment))
    assert said.startswith("the package gpt-orchestrator is not on the cluster")
    assert remedy in said


@pytest.mark.parametrize("version", [(3, 9, 1), (3, 13, 0)])
def test_other_python_of_a_cluster_reads_the_entry_and_says_so(
    version: tuple[int, int, int], entry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry.sys, "version_info", version)
    assert entry._problem(settings()) == f"the cluster has Python 3.{version[1]}, and 3.11 or 3.12 is needed"
    assert sys.version_info[:3] == version
