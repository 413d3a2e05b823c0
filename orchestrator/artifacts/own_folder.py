"""The folder that a user names for what a command makes: one of ours is replaced, nothing else is overwritten."""

from pathlib import Path

from orchestrator.artifacts import artifact
from orchestrator.errors import UserError
from orchestrator.storage.store import Storage


def own_folder(root: str, to: str | None, name: str, kind: str) -> tuple[Storage, str]:
    """Return the store and the folder in it.

    Args:
        root: The storage root.
        to: The folder that the user names; None takes `name` below the root.
        name: A folder below the root.
        kind: What the manifest of one of ours says.

    Raises:
        UserError: the folder holds anything else, which is never overwritten.
    """
    if to is not None and not to.strip():
        raise UserError("to='': is empty; name a folder or a URL, or null for one below storage.root")
    storage, name = (Storage(root), name) if to is None else (Storage(to), "")
    path = storage.local_path(name)
    if path is not None and path.is_file():
        raise UserError(f"to={storage.url(name)}: is a file; name a folder")
    is_ours = artifact.is_committed(storage, name) and artifact.read_manifest(storage, name).get("kind") == kind
    if not is_ours and storage.list(name, hidden=True):
        raise UserError(f"to={storage.url(name)}: holds other files, and nothing is overwritten; name a new folder")
    return storage, name


def put(storage: Storage, folder: Path, name: str, kind: str) -> None:
    """Publish a local folder there, in place of one of ours."""
    (artifact.replace if artifact.is_committed(storage, name) else artifact.publish)(
        storage, folder, name, {"kind": kind}
    )
