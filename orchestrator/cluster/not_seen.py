"""What is said about machines of a cluster that do not see the storage root. Imports no Ray."""

from collections.abc import Sequence

from orchestrator.storage.redaction import redact

_NUM_SHOWN = 3


def not_seen(root: str, hosts: Sequence[str]) -> str:
    """Return what to say about hosts that do not see a root."""
    others = len(hosts) - _NUM_SHOWN
    shown = ", ".join(hosts[:_NUM_SHOWN]) + (f" and {others} other{'s' if others > 1 else ''}" if others > 0 else "")
    return (
        f"storage.root={redact(root)}: a folder of this machine, which {shown} of the cluster "
        f"{'do' if len(hosts) > 1 else 'does'} not see; give a URL such as s3://bucket/outputs, or a folder on a file "
        "system that all its nodes share"
    )
