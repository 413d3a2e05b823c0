"""What is known of the processor."""

from pathlib import Path

import pytest

from modules import processor


@pytest.mark.parametrize(
    ("described", "expected"),
    [
        ("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\n", True),
        ("processor\t: 0\nvendor_id\t: GenuineIntel\n", False),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", False),
    ],
)
def test_linux_names_the_maker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, described: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(described)
    monkeypatch.setattr(processor, "Path", lambda _: tmp_path / "cpuinfo")
    assert processor.is_amd.__wrapped__() == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", True),  # of Windows
        ("Intel64 Family 6 Model 154 Stepping 3, GenuineIntel", False),
        ("arm", False),  # of macOS
    ],
)
def test_elsewhere_python_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, expected: bool) -> None:
    monkeypatch.setattr(processor, "Path", lambda _: tmp_path / "none")
    monkeypatch.setattr(processor.platform, "processor", lambda: name)
    assert processor.is_amd.__wrapped__() == expected
