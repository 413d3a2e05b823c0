"""The package finds its options, and the lock installs anywhere."""

import ast
import importlib.metadata
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import orchestrator.cli.command
from orchestrator import program_version
from orchestrator.cli import main
from orchestrator.cli.command import conf_folder

ROOT = Path(__file__).resolve().parents[2]
LOCKED_EXTRAS = ("hf", "s3", "gcs", "eval", "optuna", "workspaces", "quality", "dev")
IMPORTING_CALLS = {"import_module", "import_package", "__import__"}


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


def undeclared_imports(folder: Path, declared: set[str]) -> set[str]:
    """Return "file: package" for what is imported below `folder` and comes from none of the declared distributions."""
    providers = packages_distributions()
    return {
        f"{file.relative_to(folder)}: {package}"
        for file in folder.rglob("*.py")
        for package in imported_packages(file.read_text(encoding="utf-8")) - own_packages()
        if not declared & {_normal(name) for name in providers.get(package, ())}
    }


def imported_packages(source: str) -> set[str]:
    """Return the top-level packages beside the standard library's that a source imports, also lazily or in a script."""
    modules = {name for node in ast.walk(ast.parse(source)) for name in _imports_of(node)}
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names


def _imports_of(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(name)):
            yield name
        case ast.Call(func=ast.Attribute(attr=called) | ast.Name(id=called), args=[ast.Constant(value=str(name)), *_]):
            yield from [name] * (called in IMPORTING_CALLS)
        case ast.Constant(value=str(text)) if "import " in text:
            try:  # a script for another interpreter, or prose
                yield from imported_packages(textwrap.dedent(text))
            except SyntaxError:
                return


def own_packages() -> set[str]:
    """Return what lies here: the packages, and the files that tests and benchmarks import from beside them."""
    beside = {file.stem for folder in ("tests/support", "tests/benchmarks") for file in (ROOT / folder).glob("*.py")}
    return {"infra", "modules", "orchestrator", *beside}


def names_of(requirements: list[str]) -> set[str]:
    return {_normal(Requirement(line).name) for line in requirements}


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


@pytest.mark.parametrize("folder", ["modules", "orchestrator"])
def test_everything_that_the_package_imports_is_declared(folder: str, project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for extra in extras if extra != "dev" for line in extras[extra])]
    assert undeclared_imports(ROOT / folder, names_of(asked)) == set()


@pytest.mark.parametrize("folder", ["tests", "infra"])
def test_everything_that_tests_and_tools_import_is_declared_and_locked(folder: str, project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for extra in LOCKED_EXTRAS for line in extras[extra])]
    assert undeclared_imports(ROOT / folder, names_of(asked)) == set()


@pytest.mark.parametrize(
    "source",
    [
        "import grimp.graph, os",
        "def lazy():\n    from grimp import build_graph",
        "import_package('grimp', 'to count')",
        "run('-c', 'import grimp; grimp.x()')",
        "SCRIPT = '\\n    import sys\\n    import grimp\\n'",
    ],
)
def test_import_that_is_not_declared_is_found_wherever_it_stands(source: str, tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text(source)
    assert undeclared_imports(tmp_path, {"import-linter"}) == {"source.py: grimp"}
    assert undeclared_imports(tmp_path, {"grimp"}) == set()


def test_prose_is_no_import_and_what_nothing_installed_provides_is_undeclared(tmp_path: Path) -> None:
    (tmp_path / "prose.py").write_text("TEXT = 'import what you need'")
    unknown = "nobody_has_this"  # not spelled out in the import, as that would be found here, too
    (tmp_path / "source.py").write_text(f"import {unknown}")
    assert undeclared_imports(tmp_path, {"grimp"}) == {f"source.py: {unknown}"}


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
    monkeypatch.setattr(orchestrator.cli.command, "__file__", str(tmp_path / "orchestrator" / "cli" / "command.py"))
    assert conf_folder() == inside


def test_wheel_takes_the_options_along() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["sources"] == {"conf": "orchestrator/conf"}
    assert "conf" in build["targets"]["wheel"]["only-include"]


@pytest.mark.parametrize("is_installed", [True, False])
def test_version_is_known_where_the_source_was_sent_and_nothing_installed(
    is_installed: bool, project: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not is_installed:
        monkeypatch.setattr(importlib.metadata, "version", Mock(side_effect=importlib.metadata.PackageNotFoundError))
    assert program_version() == project["version"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"orchestrator {project['version']}\n"
