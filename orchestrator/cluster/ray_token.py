"""Whether a connection to a Ray cluster is safe: where it leads, and whether Ray sends a token. Imports no Ray."""

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.errors import UserError
from orchestrator.storage.redaction import redact

TOKEN_FILE = ".ray/auth_token"  # noqa: S105  # its name alone
"""Below the home folder; the last path at which Ray looks for a token."""
_CLIENT_PORT = 10001
_PORTS = {"ray": _CLIENT_PORT, "http": 80, "https": 443}


def auth_mode() -> str | None:
    """Return RAY_AUTH_MODE; None where it is not set."""
    mode = os.environ.get("RAY_AUTH_MODE")
    return mode.lower() if mode else None


def has_token() -> bool:
    """Return whether Ray would find a token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / TOKEN_FILE).expanduser()
    return path.is_file() and path.stat().st_size > 0


def sends_token(address: str | None) -> bool:
    """Return whether Ray sends it a token; without RAY_AUTH_MODE only if Ray found the cluster itself (ray 2.60.0)."""
    return auth_mode() == "token" or (auth_mode() is None and address in (None, "auto") and has_token())


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return host and port; None where Ray finds them itself, as for `auto`."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
    return (parts.hostname, port) if parts.hostname and port else None


def is_loopback(address: str) -> bool:
    """Return whether an address leads to this machine alone."""
    try:
        host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_secure(field: str, address: str | None, allow_insecure: bool, allowing_field: str) -> None:
    """Refuse an address beyond this machine to which no token is sent.

    Args:
        field: The setting that holds the address.
        address: The address; None and `auto` are the cluster of this machine.
        allow_insecure: Whether the user accepts it.
        allowing_field: The setting by which the user does.

    Raises:
        UserError: who reaches that cluster could run code there (CVE-2023-48022).
    """
    if address in (None, "auto", "local") or is_loopback(address) or auth_mode() == "token" or allow_insecure:
        return
    raise UserError(
        f"{field}={redact(address)}: not on this machine, and no token is sent: a cluster that needs none runs the "
        "code of anyone who reaches it. Set RAY_AUTH_MODE=token, with the cluster's token in RAY_AUTH_TOKEN or "
        f"~/{TOKEN_FILE}; or, in a network that you trust, {allowing_field}=true"
    )
