"""What all tests share."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from worker_pool import Pools

# on a busy machine each kernel of two threads costs a time slice; torch reads the variable when it is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
# otherwise Ray writes a token into the home folder of the user who runs the tests
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
# otherwise W&B's client reports its own errors to its makers, also from these tests
os.environ["WANDB_ERROR_REPORTING"] = "false"
# the same examples in each run, however busy the machine is
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_NO_SHARED_DATA = "needs ../shared/data"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the W&B account of the user who runs the tests, so that nothing is sent to it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    """Yield the worker pools that all tests share, since a pool takes ten seconds to start."""
    pools = Pools()
    yield pools
    pools.close()


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """Return the path of a file of shared data by name; the test is skipped where there is none."""

    def find(name: str) -> Path:
        path = _SHARED / name
        if not path.exists():
            pytest.skip(_NO_SHARED_DATA)
        return path

    return find


@pytest.fixture(scope="session")
def smollm2(pytestconfig: pytest.Config) -> Path:
    """Return the folder of SmolLM2-135M-Instruct; the first call downloads and converts it, so its tests are slow."""
    from smollm2 import smollm2_folder

    return smollm2_folder(pytestconfig.cache.mkdir("smollm2"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `gpu`, or `gpu(number)` for several devices, where there are fewer.

    It is skipped here and not where it is collected, so that a fault in its file shows on every machine.
    """
    marker = item.get_closest_marker("gpu")
    if marker is not None:
        import torch

        needed = marker.args[0] if marker.args else 1
        if torch.cuda.device_count() < needed:
            pytest.skip(f"needs {needed} CUDA device{'s' if needed > 1 else ''}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests stay together where several processes run them: those that share what takes long to start.

    It is said before pytest-xdist asks.
    """
    for item in items:
        shares_pools = "pools" in getattr(item, "fixturenames", ())
        group = "ray" if item.get_closest_marker("ray") else "pools" if shares_pools else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of skipped tests for each reason, since a skipped test has shown nothing."""
    reasons = Counter(
        str(report.longrepr[-1]).removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, number in reasons.items():
        terminalreporter.write_line(f"not run: {number} test{'s' if number > 1 else ''} ({reason})", yellow=True)
