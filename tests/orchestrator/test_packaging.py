"""The package finds its options, and the lock installs anywhere."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import orchestrator.cli
from orchestrator.cli import conf_folder

ROOT = Path(__file__).resolve().parents[2]
LOCKED_EXTRAS = ("hf", "s3", "gcs", "dev")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []
    return {_normal(name): version for name, _, version in (line.partition("==") for line in pins)}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_lock_leaves_the_build_of_torch_to_the_platform(lock: dict[str, str]) -> None:
    assert lock["torch"] == "2.13.0"
    assert [name for name in lock if name.startswith(("nvidia", "cuda", "triton"))] == []


def test_lock_names_no_place_and_no_host() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|file:|@ |--index|--find-links|\+", text)


def test_everything_that_the_package_asks_for_is_locked_to_a_fitting_version(
    project: dict[str, Any], lock: dict[str, str]
) -> None:
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for extra in LOCKED_EXTRAS for line in extras[extra])]
    for requirement in map(Requirement, asked):
        version = lock.get(_normal(requirement.name))
        assert version is not None, f"{requirement.name} is not locked"
        assert requirement.specifier.contains(version), f"{requirement} does not allow {version}"


def test_malicious_releases_are_excluded(project: dict[str, Any]) -> None:
    lightning = next(r for r in map(Requirement, project["dependencies"]) if r.name == "pytorch-lightning")
    assert {"2.6.2", "2.6.3"} <= {rule.version for rule in lightning.specifier if rule.operator == "!="}


def test_supported_pythons_are_those_that_can_be_installed_on(project: dict[str, Any]) -> None:
    supported = Requirement(f"python{project['requires-python']}").specifier
    versions = [Version(version) for version in ("3.10", "3.11", "3.12", "3.13")]
    assert [supported.contains(version) for version in versions] == [False, True, True, False]


def test_options_lie_beside_the_package_in_a_checkout_and_inside_it_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert conf_folder() == ROOT / "conf"
    inside = tmp_path / "orchestrator" / "conf"
    inside.mkdir(parents=True)
    monkeypatch.setattr(orchestrator.cli, "__file__", str(tmp_path / "orchestrator" / "cli.py"))
    assert conf_folder() == inside


def test_wheel_takes_the_options_along() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["sources"] == {"conf": "orchestrator/conf"}
    assert "conf" in build["targets"]["wheel"]["only-include"]
