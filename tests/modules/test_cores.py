from pathlib import Path

import pytest

from modules import cores


def control_groups(folder: Path, own: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `num_cores` see these control groups, on a machine of which the process may use eight cores."""
    (folder / "own").write_text(own)
    for name, content in files.items():
        path = folder / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(cores, "_OWN_CGROUPS", folder / "own")
    monkeypatch.setattr(cores, "_CGROUPS", folder / "root")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("os.cpu_count", lambda: 64)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
        ("0::/slurm/job/step\n", {"slurm/job/cpu.max": "300000 100000\n", "slurm/cpu.max": "max 100000\n"}, 3),
        (
            "2:cpu,cpuacct:/pod\n",
            {"cpu,cpuacct/pod/cpu.cfs_quota_us": "400000", "cpu,cpuacct/pod/cpu.cfs_period_us": "100000"},
            4,
        ),
        ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "100000", "cpuset/cpu.cfs_period_us": "100000"}, 8),
        ("0::/gone\n", {"cpu.weight": "100"}, 8),
    ],
)
def test_cores_are_those_that_the_process_may_use(
    own: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control_groups(tmp_path, own, files, monkeypatch)
    assert cores.num_cores() == expected


def test_without_control_groups_the_set_of_cores_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control_groups(tmp_path, "", {}, monkeypatch)
    (tmp_path / "own").unlink()
    assert cores.num_cores() == 8


def test_the_number_of_the_machines_cores_is_asked_for_in_one_place() -> None:
    root = Path(cores.__file__).parents[1]
    asking = [
        path.relative_to(root).as_posix()
        for room in ("modules", "orchestrator")
        for path in sorted((root / room).rglob("*.py"))
        if "cpu_count" in path.read_text(encoding="utf-8")
    ]
    # doctor tells how many of the machine's cores may be used
    assert asking == ["modules/cores.py", "orchestrator/doctor/machine.py"]
