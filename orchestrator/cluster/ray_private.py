"""A cluster for one run alone: Ray's processes listen on loopback, and demand a token of the run's own."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

_ON_NETWORK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0, Ray uses loopback for a machine's address, as it does on macOS; else it listens on every one (ray 2.60.0)."""
_TOKEN_PLACES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", _ON_NETWORK)


@contextmanager
def private_cluster() -> Iterator[None]:
    """Make the cluster that is started within private, whatever the environment says of others.

    The token lives in the environment of the run's processes, so that none is written into the user's home folder.
    """
    before = {name: os.environ.pop(name) for name in _TOKEN_PLACES if name in os.environ}
    on_network = ray_constants.ENABLE_RAY_CLUSTER
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), _ON_NETWORK: "0"}
    ray_constants.ENABLE_RAY_CLUSTER = False
    _read_again()
    try:
        yield
    finally:
        for name in _TOKEN_PLACES:
            os.environ.pop(name, None)
        os.environ |= before
        ray_constants.ENABLE_RAY_CLUSTER = on_network
        _read_again()


def _read_again() -> None:
    """Let Ray read its settings from the environment again, which it has done when it was imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
