"""Tests marked `gpu` are counted where there are too few devices, and a fault in their files shows everywhere."""

from pathlib import Path

import pytest
import torch

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _with_our_conftest(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    pytester.makeini("[pytest]\nmarkers = gpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)


def test_tests_with_too_few_devices_are_skipped_and_counted(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gpu
        def test_with_one(): pass

        @pytest.mark.gpu(2)
        @pytest.mark.parametrize("name", ["a", "b"])
        def test_with_two(name): raise AssertionError
        """
    )
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["not run: 2 tests (needs 2 CUDA devices)"])


def test_file_that_cannot_be_collected_is_an_error_without_a_device(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import pytest\nraise ImportError\npytestmark = pytest.mark.gpu(2)\ndef test_a(): pass")
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.INTERRUPTED
