"""Tests that share what takes long to start run in one process, however many there are."""

import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
TESTS = Path(__file__).parent
FILE = """
import os
import pytest

@pytest.fixture
def pools():
    pass

@pytest.mark.parametrize("number", range(20))
def test_a(pools, number):
    with open("processes.txt", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")
"""


def test_tests_of_two_files_that_share_pools_run_in_one_process(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((TESTS / "conftest.py").read_text(encoding="utf-8"))
    pytester.makeini(f"[pytest]\nmarkers = gpu\npythonpath = {TESTS.parent} {TESTS / 'support'}")
    pytester.makepyfile(test_first=FILE, test_second=FILE)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup"]
    result = pytester.run(*command)
    result.assert_outcomes(passed=40)
    assert len(set((pytester.path / "processes.txt").read_text().split())) == 1
