"""What all tests share."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worker_pool import Pools

# on a busy machine each kernel of two threads costs a time slice; it is read when torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
# W&B otherwise reports on itself to its makers, from whatever is tested here
os.environ["WANDB_ERROR_REPORTING"] = "false"

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
_NO_SHARED_DATA = "needs ../shared/data"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a W&B account: nothing is sent to it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty folder the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    """Workers that train for all tests: a group of them takes ten seconds to start."""
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Count what did not run, in a line for each reason: a skipped test has shown nothing."""
    reasons = Counter(str(report.longrepr[-1]) for report in terminalreporter.stats.get("skipped", []))
    for reason, number in reasons.items():
        terminalreporter.write_line(f"not run: {number} test{'s' if number > 1 else ''} ({reason})", yellow=True)
