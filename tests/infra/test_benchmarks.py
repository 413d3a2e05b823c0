"""`make bench`: a benchmark that fails loses no other, and is said to have failed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

RUN = Path(__file__).parents[1] / "benchmarks" / "run.py"
GOOD = 'def main(): return [("speed (tokens/s)", 30.0, 20.0, 1.5), ("time (ms)", 10.0, 20.0, 0.5)]'
HALF = 'def main():\n    yield "first (ms)", 2.0, 4.0\n    raise ValueError("a long story\\nthe end of it")'
CHILD = """
import subprocess, sys
def main():
    code = "import sys; print('one', file=sys.stderr); sys.exit('last words')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
"""
ZERO = 'def main(): return [("time (ms)", 0.0, 1.0)]'
LEAVES = (
    'import sys, torch\ndef main():\n    torch.set_num_threads(1)\n    sys.left = 1\n    return [("a (ms)", 1.0, 1.0)]'
)
FINDS = """
import sys, torch
def main():
    yield "threads", torch.get_num_threads(), 1.0
    yield "left", 1.0 + hasattr(sys, "left"), 1.0
"""
CRASH = 'import os\ndef main():\n    yield "before (ms)", 2.0, 4.0\n    os._exit(3)'
NOBODY = "nobody_has_this"
MISSING = f"import {NOBODY}"
ADDRESS = 'import os\ndef main(): return [(os.environ["RAY_ADDRESS"] + " (ms)", 1.0, 1.0)]'


def bench(folder: Path, **modules: str) -> tuple[int, str, list[list[object]]]:
    """Return the exit code, what was printed, and the rows, of a copy of `run.py` beside such benchmarks."""
    (folder / "run.py").write_text(RUN.read_text())
    for name, source in modules.items():
        (folder / f"bench_{name}.py").write_text(source)
    environment = {**os.environ, "COLUMNS": "200", "RAY_ADDRESS": "10.0.0.1:6379"}
    command = [sys.executable, str(folder / "run.py"), "--json", str(folder / "rows.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, json.loads((folder / "rows.json").read_text())


def test_a_benchmark_that_fails_loses_no_row_of_the_others_and_says_why(tmp_path: Path) -> None:
    code, shown, rows = bench(tmp_path, a_half=HALF, b_child=CHILD, c_zero=ZERO, d_good=GOOD, e_missing=MISSING)
    assert code == 1
    assert [row[3] for row in rows] == [2.0, None, None, None, 1.5, 2.0, None]
    for reason in ("ValueError: the end of it", "last words", "not a ratio", f"No module named {NOBODY!r}"):
        assert reason in shown


def test_a_process_that_dies_loses_no_row_and_is_said_to_have_failed(tmp_path: Path) -> None:
    code, shown, rows = bench(tmp_path, a_crash=CRASH, b_good=GOOD)
    assert code == 1
    assert [row[3] for row in rows] == [2.0, None, 1.5, 2.0]
    assert "crash: its process ended with exit code 3" in shown


def test_the_machine_is_named_and_no_peer_joins_a_cluster_that_lies_about(tmp_path: Path) -> None:
    code, shown, rows = bench(tmp_path, good=GOOD, address=ADDRESS)
    assert code == 0
    assert shown.index(" cores, ") < shown.index(" threads") < shown.index("Ours beside peers")
    assert rows[0][0] == "local (ms)"


def test_a_benchmark_finds_nothing_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    _, _, rows = bench(tmp_path, a_leaves=LEAVES, b_finds=FINDS)
    assert [row[1] for row in rows] == [1.0, 2.0, 1.0]


def test_what_needs_a_gpu_is_left_out_without_one(tmp_path: Path) -> None:
    code, _, rows = bench(tmp_path, gpu=GOOD, other=HALF)
    assert code == 1
    assert len(rows) == (4 if torch.cuda.is_available() else 2)
