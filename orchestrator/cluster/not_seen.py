"""What is said about machines of a cluster that do not see the storage root. Imports no Ray."""

from collections.abc import Sequence

from orchestrator.storage.redaction import redact

_NUM_SHOWN = 3


def not_seen(root: str, hosts: Sequence[str]) -> str:
    """Return what to say about hosts that do not see a root."""
    return (
        f"storage.root={redact(root)}: a folder of this machine, which {_shown(hosts)} not see; give a URL such as "
        "s3://bucket/outputs, or a folder on a file system that all its nodes share"
    )


def no_file_seen(name: str, hosts: Sequence[str]) -> str:
    """Return what to say about hosts that do not see a file of the text."""
    return (
        f"{redact(name)}: a file of this machine, which {_shown(hosts)} not see; give data.path as a URL such as "
        "s3://bucket/text, or a folder on a file system that all its nodes share, or leave out cluster=ray"
    )


def _shown(hosts: Sequence[str]) -> str:
    others = len(hosts) - _NUM_SHOWN
    shown = ", ".join(hosts[:_NUM_SHOWN]) + (f" and {others} other{'s' if others > 1 else ''}" if others > 0 else "")
    return f"{shown} of the cluster {'do' if len(hosts) > 1 else 'does'}"
