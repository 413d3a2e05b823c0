"""Checks of everything that compiles: compiler, ninja, DeepSpeed's extensions, and locks of killed compiles."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from orchestrator.distributed.compile_folder import FOLDER_VARIABLE, own_folder, stale_locks
from orchestrator.doctor.findings import Finding

BUILD_SECONDS = 600
_COMPILE = "from orchestrator.distributed.strategy import compile_cpu_adam; compile_cpu_adam()"


def compiler() -> Finding:
    """Look for the C++ compiler and Python's headers; only compiled models on CPU and extensions need them."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    needed_for = (
        "training.compile=true and training.head_loss=compiled on CPU, and DeepSpeed's own extensions do not work"
    )
    if path is None:
        remedy = "apt-get install g++ python3-dev, or dnf install gcc-c++ python3-devel"
        return Finding("warning", f"no {name} on PATH: {needed_for}", remedy)
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        remedy = "apt-get install python3-dev, or dnf install python3-devel"
        return Finding("warning", f"{path}, but no Python.h: {needed_for}", remedy)
    return Finding("ok", f"{path}, with Python's headers")


def ninja() -> Finding:
    """Look for ninja, which DeepSpeed's extensions are compiled with."""
    path = shutil.which("ninja")
    if path is None:
        remedy = "apt-get install ninja-build, or pip install ninja"
        return Finding("warning", "no ninja on PATH: DeepSpeed's own extensions do not compile", remedy)
    return Finding("ok", path)


def extensions(build: bool) -> Finding:
    """Compile DeepSpeed's Adam for the CPU if requested."""
    if not build:
        return Finding("ok", "none is compiled by our strategies; build=true tries it")
    # in a process of its own, because it prints, and may have to be killed
    try:
        done = subprocess.run(
            [sys.executable, "-c", _COMPILE], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("failure", f"DeepSpeed's CPU Adam is not compiled after {BUILD_SECONDS} s", "run it again")
    if done.returncode:
        return Finding("failure", f"DeepSpeed's CPU Adam does not compile: {_reason(done.stdout + done.stderr)}")
    return Finding("ok", "DeepSpeed's CPU Adam is compiled")


def locks(fix: bool) -> Finding:
    """Look for locks of compiles that were killed, and remove them if requested."""
    own = own_folder()
    folders = {own, Path(os.environ.get(FOLDER_VARIABLE, own))}
    stale = [path for folder in sorted(folders) for path in stale_locks(folder, remove=fix)]
    paths = ", ".join(map(str, stale))
    if not stale:
        return Finding("ok", "none")
    if fix:
        return Finding("ok", f"removed {paths}")
    text = f"left by killed compiles, later ones wait for ever: {paths}"
    return Finding("failure", text, "orchestrator doctor fix=true")


def _reason(output: str) -> str:
    """Return the compiler's first error, or else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    complaint = next((line for line in lines if "error:" in line.lower() or "requires" in line), "")
    return (complaint or (lines[-1] if lines else "it said nothing"))[:300]
