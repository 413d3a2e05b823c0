"""Which addresses are safe without a token."""

from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.cluster.ray_token import check_secure, host_and_port, is_loopback
from orchestrator.errors import UserError


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))


@pytest.mark.parametrize(
    "address",
    ["10.0.0.7:6379", "ray://10.0.0.7:10001", "http://head:8265", "[fd00::2]:6379", "127.0.0.1.example.com:1"],
)
def test_address_beyond_this_machine_needs_a_token_or_leave(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cluster.allow_insecure=true"):
        check_secure("cluster.address", address, False, "cluster.allow_insecure")
    check_secure("cluster.address", address, True, "cluster.allow_insecure")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match="RAY_AUTH_MODE=token"):
        check_secure("cluster.address", address, False, "cluster.allow_insecure")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    check_secure("cluster.address", address, False, "cluster.allow_insecure")


@pytest.mark.parametrize(
    "address", [None, "auto", "local", "127.0.0.1:6379", "http://localhost:8265", "ray://[::1]:10001"]
)
def test_this_machine_is_safe(address: str | None) -> None:
    check_secure("cluster.address", address, False, "cluster.allow_insecure")


def test_training_on_an_unsafe_address_is_refused_before_anything_is_written(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pretrain", "cluster=ray", "cluster.address=10.0.0.7:6379"]) == 2
    assert capsys.readouterr().err.startswith("error: cluster.address=10.0.0.7:6379: not on this machine")
    assert list(empty_folder.iterdir()) == []


def test_host_and_port_of_an_address() -> None:
    assert host_and_port("http://head:8265") == ("head", 8265)
    assert host_and_port("https://head") == ("head", 443)
    assert host_and_port("ray://head") == ("head", 10001)
    assert host_and_port("head:99999999") is None
    assert not is_loopback("http://[::1")
