"""The artifact of a mixture: the names of its sources, and of each the prepared data. It holds no tokens."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from modules.errors import InputError
from orchestrator.artifacts import artifact
from orchestrator.artifacts.recipe import fingerprint
from orchestrator.artifacts.staging import staging_folder
from orchestrator.errors import ArtifactError, UserError
from orchestrator.storage.store import Storage

PREFIX = "data/mixture-"
"""What the names of mixtures begin with; those of single texts begin with their source."""


def mixture_name(sources: Mapping[str, str]) -> str:
    """Return the name of the mixture of prepared data, by the name of the source."""
    return PREFIX + fingerprint(_recipe(sources))


def publish_mixture(storage: Storage, sources: Mapping[str, str]) -> str:
    """Commit the mixture of prepared data, by the name of the source, and return its name."""
    name = mixture_name(sources)
    if not artifact.is_committed(storage, name):
        with staging_folder(storage, name) as folder:
            artifact.publish(storage, folder, name, {"kind": "mixture", "recipe": _recipe(sources)})
    return name


def sources_of(storage: Storage, name: str) -> dict[str, str]:
    """Return the prepared data of each source by the source's name, in the order of the names.

    Prepared data that is no mixture is the only source, without a name.

    Raises:
        ArtifactError: the mixture is not there, or damaged.
    """
    if not name.startswith(PREFIX):
        return {"": name}
    return dict(sorted(artifact.read_manifest(storage, name)["recipe"]["sources"].items()))


def is_there(storage: Storage, name: str) -> bool:
    """Return whether prepared data is committed, and all sources of a mixture are."""
    if not artifact.is_committed(storage, name):
        return False
    return all(of == name or artifact.is_committed(storage, of) for of in sources_of(storage, name).values())


@contextmanager
def of_source(name: str) -> Iterator[None]:
    """Say in an error which source it is about."""
    try:
        yield
    except (UserError, InputError) as error:
        raise UserError(f"source {name}: {str(error).removeprefix('data: ')}") from error
    except ArtifactError as error:
        raise ArtifactError(f"source {name}: {error}") from error


def _recipe(sources: Mapping[str, str]) -> dict[str, object]:
    return {"command": "prepare", "sources": dict(sorted(sources.items()))}
