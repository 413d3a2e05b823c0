"""The image: linted, built from the lock, without root and without secrets. It is never built here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra/container"
TOOLS = Path(sys.executable).parent


def instructions() -> list[str]:
    """Return the instructions of the Dockerfile, comments out and continued lines joined."""
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    return [line for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines() if line]


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([TOOLS / "hadolint", FOLDER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_base_is_pinned_to_a_release_of_the_python_that_the_lock_is_for() -> None:
    (base,) = (line.partition("=")[2] for line in instructions() if line.startswith("ARG PYTHON_IMAGE"))
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", base)


def test_image_runs_without_root() -> None:
    users = [line for line in instructions() if line.startswith("USER")]
    assert users == ["USER 1000"]
    assert [line for line in instructions() if line.startswith(("CMD", "ENTRYPOINT"))] == instructions()[-1:]


def test_every_installation_takes_the_versions_of_the_lock() -> None:
    installs = [part for line in instructions() for part in line.split("&&") if "pip install" in part]
    assert len(installs) == 2
    assert all("--constraint requirements.lock" in part for part in installs)


@pytest.mark.parametrize("kind", ["COPY", "ADD"])
def test_only_what_the_program_is_made_of_gets_into_the_image(kind: str) -> None:
    copied = {word for line in instructions() if line.startswith(kind) for word in line.split()[1:-1]}
    let_in = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    assert copied <= let_in
    assert all((ROOT / name).exists() for name in let_in)


def test_no_secret_is_named_in_the_image() -> None:
    text = " ".join(instructions())
    assert not re.search(r"(?i)(key|token|password|secret)\s*=", text)
