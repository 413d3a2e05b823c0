"""`orchestrator doctor`: how checks are run and shown, and the checks of this machine, with good and bad results."""

import fcntl
import io
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet
from rich.console import Console

from orchestrator.distributed.compile_folder import FLOCK_FILE, FOLDER_VARIABLE, own_folder
from orchestrator.doctor import machine, packages, report, toolchain
from orchestrator.doctor.findings import Finding, run_checks
from orchestrator.errors import StorageError

ROOT = Path(__file__).resolve().parents[3]
SECRET = "0123456789abcdef0123456789abcdef01234567"
FINE = Finding("ok", "fine")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the compiler that the machine prefers, and the extensions that it has compiled."""
    for name in ("CXX", "TORCH_EXTENSIONS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that adds tools to PATH, which holds nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def place(*names: str, script: str = "exit 0") -> None:
        for name in names:
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)

    return place


# how checks are run


def test_findings_come_in_the_order_of_the_checks_whichever_is_done_first() -> None:
    second_is_done = Event()

    def first() -> Finding:
        assert second_is_done.wait(60)
        return FINE

    def second() -> Finding:
        second_is_done.set()
        return FINE

    assert list(run_checks({"first": first, "second": second}, 60)) == [("first", FINE), ("second", FINE)]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ZeroDivisionError("a bug"), "the check itself failed: ZeroDivisionError: a bug"),
        (StorageError("cannot write outputs: permission denied"), "cannot write outputs: permission denied"),
        (OSError("s3://KEY:SECRET@bucket is away"), "the check itself failed: OSError: s3://***@bucket is away"),
    ],
)
def test_check_that_raises_has_failed_and_stops_no_other(error: Exception, text: str) -> None:
    def crash() -> Finding:
        raise error

    found = dict(run_checks({"crash": crash, "other": lambda: FINE}, 60))
    assert found == {"crash": Finding("failure", text), "other": FINE}


def test_secret_of_the_environment_is_struck_out_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", SECRET)

    def crash() -> Finding:
        raise ValueError(f"{SECRET} is refused")

    ((_, finding),) = run_checks({"crash": crash}, 60)
    assert "is refused" in finding.text
    assert SECRET not in finding.text


def test_check_that_does_not_end_has_failed_and_others_are_reported() -> None:
    never = Event()

    def hang() -> Finding:
        never.wait(60)
        return FINE

    found = dict(run_checks({"other": lambda: FINE, "hang": hang}, 0.2))
    never.set()
    assert (found["other"], found["hang"].status) == (FINE, "failure")
    assert "no answer within 0.2 s" in found["hang"].text


# what is shown

FINDINGS = [
    ("storage", Finding("ok", "works")),
    ("shared memory", Finding("warning", "/dev/shm has 64 MB " * 5, "docker run --shm-size=8g")),
    ("Ray", Finding("failure", "nothing listens", "ray start --head there")),
]


def test_in_a_file_every_check_is_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.show_findings(FINDINGS) == ["Ray"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok       storage        works"
    assert lines[2] == "failure  Ray            nothing listens; remedy: ray start --head there"
    assert len(lines) == 3


def test_on_a_terminal_findings_fit_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Console(record=True, force_terminal=True, width=80, file=io.StringIO())
    monkeypatch.setattr(report, "new_console", lambda: terminal)
    report.show_findings(FINDINGS)
    lines = terminal.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert "                        remedy: docker run --shm-size=8g" in [line.rstrip() for line in lines]


# what compiles


def test_compiler_and_ninja_are_found(tools: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    tools("clang++", "ninja")
    monkeypatch.setenv("CXX", "clang++")
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: os.environ["PATH"])
    Path(os.environ["PATH"], "Python.h").touch()
    assert toolchain.compiler().status == "ok"
    assert "bin/clang++" in toolchain.compiler().text
    assert toolchain.ninja().status == "ok"


def test_missing_compiler_headers_or_ninja_are_warnings_with_the_package_to_install(
    tools: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [toolchain.compiler(), toolchain.ninja()]
    tools("g++")
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(tmp_path))
    found.append(toolchain.compiler())
    assert [finding.status for finding in found] == ["warning"] * 3
    for finding, said, remedy in zip(
        found, ("no g++", "no ninja", "no Python.h"), ("g++", "ninja-build", "python3-dev"), strict=True
    ):
        assert said in finding.text
        assert f"apt-get install {remedy}" in finding.remedy


def test_extensions_are_compiled_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.subprocess, "run", lambda *_, **__: pytest.fail("it compiles"))
    assert toolchain.extensions(build=False).status == "ok"


@pytest.mark.parametrize(
    ("code", "output", "status", "said"),
    [
        (0, "", "ok", "is compiled"),
        (
            1,
            "Traceback\ncpu_adam.cpp:1: fatal error: omp.h: No such file\nRuntimeError",
            "failure",
            "omp.h: No such file",
        ),
        (-9, "", "failure", "it said nothing"),
    ],
)
def test_compile_that_fails_is_reported_by_the_compilers_own_complaint(
    code: int, output: str, status: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], code, stdout=output, stderr="")
    monkeypatch.setattr(toolchain.subprocess, "run", lambda *_, **__: done)
    finding = toolchain.extensions(build=True)
    assert finding.status == status
    assert said in finding.text


@pytest.fixture(params=["ours", "the user's"])
def stale_lock(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Leave a lock of a compile that was killed long ago."""
    if request.param == "the user's":
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "extensions"))
    path = Path(os.environ.get(FOLDER_VARIABLE, own_folder())) / "cpu_adam" / "lock"
    path.parent.mkdir(parents=True)
    path.touch()
    for place in (path, path.parent):
        os.utime(place, (0, 0))
    return path


def test_stale_lock_is_a_failure_until_it_is_fixed(stale_lock: Path) -> None:
    path = stale_lock
    finding = toolchain.locks(fix=False)
    assert (finding.status, finding.remedy) == ("failure", "orchestrator doctor fix=true")
    assert str(path) in finding.text
    assert path.exists()
    assert toolchain.locks(fix=True) == Finding("ok", f"removed {path}")
    assert toolchain.locks(fix=False) == Finding("ok", "none")


def test_lock_where_a_process_of_ours_may_compile_is_no_failure_and_is_not_removed(stale_lock: Path) -> None:
    stale_lock.touch()
    with (stale_lock.parents[1] / FLOCK_FILE).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert toolchain.locks(fix=True) == Finding("ok", "none")
    assert stale_lock.exists()


# what the machine has


@pytest.mark.parametrize(
    ("instructions", "text"),
    [((), "bfloat16 by emulation, slower than float32"), (("AVX-512 BF16", "AMX"), "bfloat16 by AVX-512 BF16 and AMX")],
)
def test_processors_and_memory_are_reported(
    monkeypatch: pytest.MonkeyPatch, instructions: tuple[str, ...], text: str
) -> None:
    monkeypatch.setattr(machine, "bfloat16_instructions", lambda: instructions)
    finding = machine.processors()
    assert f"{len(os.sched_getaffinity(0))} CPU" in finding.text
    assert "memory" in finding.text
    assert finding.text.endswith(text)


def test_little_free_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    little = SimpleNamespace(total=8e9, available=1e9)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: little)
    assert machine.processors().status == "warning"


@pytest.mark.parametrize(("free", "status"), [(64e6, "warning"), (8e9, "ok")])
def test_shared_memory_of_a_bare_container_is_a_warning(
    free: float, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(total=free, free=free))
    assert machine.shared_memory().status == status
    monkeypatch.setattr(machine, "SHARED_MEMORY", str(tmp_path / "missing"))
    assert machine.shared_memory().status == "warning"


@pytest.mark.parametrize(
    ("driver", "cuda", "count", "nccl", "status", "said"),
    [
        (False, None, 0, False, "ok", "none; torch"),
        (True, None, 0, False, "warning", "built for the CPU alone"),
        (True, "13.0", 0, True, "warning", "sees no GPU"),
        (True, "13.0", 1, False, "ok", "1 x H100 (80.0 GB), CUDA 13.0"),
        (True, "13.0", 2, False, "warning", "without NCCL"),
        (True, "13.0", 2, True, "ok", "2 x H100 (80.0 GB), CUDA 13.0, NCCL 2.30.4"),
    ],
)
def test_gpus_are_reported_as_torch_sees_them(
    driver: bool,
    cuda: str | None,
    count: int,
    nccl: bool,
    status: str,
    said: str,
    tools: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from torch.cuda import nccl as torchs_nccl

    tools(*["nvidia-smi"] * driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(name="H100", total_memory=80e9)
    )
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(torchs_nccl, "version", lambda: (2, 30, 4))
    finding = machine.gpus()
    assert finding.status == status
    assert said in finding.text


# versions


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the project's metadata from pyproject.toml, since the installed one may be older than the checkout."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [f"{line}; extra == {extra!r}" for extra in extras for line in extras[extra]]
    monkeypatch.setattr(packages, "_requirements", lambda: [*project["dependencies"], *lines])


def with_versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> Finding:
    installed = {**packages.TESTED, **{name.replace("_", "-"): version for name, version in changed.items()}}
    monkeypatch.setattr(packages, "installed_version", installed.__getitem__)
    return packages.versions()


def test_tested_versions_are_those_of_the_lock() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").split()
    assert {f"{name}=={version}" for name, version in packages.TESTED.items()} <= set(lines)


def test_installed_versions_are_looked_up() -> None:
    assert packages.installed_version("rich") is not None
    assert packages.installed_version("no-such-package-at-all") is None


def test_ranges_are_those_of_the_installed_project(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        packages.importlib.metadata,
        "requires",
        lambda name: asked.append(name) or ["Py_Tz<3,>=2", "rich>=14; extra == 'dev'", "six; python_version >= '3'"],
    )
    assert packages.allowed_ranges() == {"py-tz": SpecifierSet(">=2,<3"), "six": SpecifierSet()}
    assert asked == ["gpt-orchestrator"]


@pytest.mark.usefixtures("declared")
def test_every_compared_package_has_a_range_and_no_next_minor_release_where_a_reason_is_reported() -> None:
    ranges = packages.allowed_ranges()
    assert all(len(ranges[name]) > 0 and ranges[name].contains(version) for name, version in packages.TESTED.items())
    for name in packages.WHY_NOT_OTHERS:
        major, minor, *_ = packages.TESTED[name].split(".")
        assert not ranges[name].contains(f"{major}.{int(minor) + 1}.0"), name


@pytest.mark.usefixtures("declared")
def test_build_of_torch_for_a_platform_is_a_tested_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_versions(monkeypatch, torch=packages.TESTED["torch"] + "+cu130").status == "ok"


@pytest.mark.usefixtures("declared")
@pytest.mark.parametrize(
    ("name", "version", "status", "said", "remedy"),
    [
        ("pytorch_lightning", "2.6.2", "failure", "malicious release (GHSA-w37p-236h-pfx3)", "change every key"),
        ("pytorch_lightning", "2.6.3", "failure", "malicious release (GHSA-w37p-236h-pfx3)", "change every key"),
        ("omegaconf", "2.4.0rc1", "failure", "releases below 2.4", "omegaconf==2.3.1"),
        ("ray", None, "failure", "not installed: ray", "pip install ray==2.60.0"),
        ("torch", "2.14.0+cu130", "failure", "(tested: 2.13.0): private parts", "pip install torch==2.13.0"),
        ("torch", "2.12.1", "failure", "torch 2.12.1 is outside <2.14,>=2.13", "pip install torch==2.13.0"),
        ("pytorch_lightning", "2.7.0", "failure", "(tested: 2.6.6): private parts", "pytorch-lightning==2.6.6"),
        ("deepspeed", "0.20.0", "failure", "(tested: 0.19.8): private parts", "deepspeed==0.19.8"),
        ("ray", "2.61.0", "failure", "(tested: 2.60.0): private parts", "ray==2.60.0"),
        ("wandb", "0.29.0", "failure", "wandb 0.29.0 is outside >=0.30", "wandb==0.31.0"),
        ("torch", "2.13.1", "warning", "torch 2.13.1 (tested: 2.13.0)", "pip install torch==2.13.0"),
        ("torch", "2.13.1rc1", "warning", "torch 2.13.1rc1 (tested: 2.13.0)", "pip install torch==2.13.0"),
        ("deepspeed", "0.19.9", "warning", "deepspeed 0.19.9 (tested: 0.19.8)", "deepspeed==0.19.8"),
    ],
)
def test_other_versions_are_reported_with_those_that_work(
    name: str, version: str | None, status: str, said: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = with_versions(monkeypatch, **{name: version})
    assert finding.status == status
    assert said in finding.text
    assert remedy in finding.remedy


@pytest.mark.usefixtures("declared")
def test_all_packages_outside_their_ranges_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = with_versions(monkeypatch, torch="2.14.0", ray="2.61.0", deepspeed="0.19.9")
    assert finding.status == "failure"
    assert finding.remedy == "pip install torch==2.13.0 ray==2.60.0"


def test_without_metadata_of_the_project_other_versions_are_untested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PROJECT", "no-such-package-at-all")
    assert with_versions(monkeypatch).status == "ok"
    assert with_versions(monkeypatch, torch="2.14.0").status == "warning"
    assert with_versions(monkeypatch, pytorch_lightning="2.6.3").status == "failure"
