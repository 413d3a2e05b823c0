"""How and where a GPT is trained: the rooms of the house, see CONTRIBUTING.md."""

import importlib.metadata
from pathlib import Path


def program_version() -> str:
    """Return the version of this program, also where its source was sent to a cluster and nothing was installed."""
    try:
        return importlib.metadata.version("gpt-orchestrator")
    except importlib.metadata.PackageNotFoundError:
        import tomllib

        source = Path(__file__).parents[1] / "pyproject.toml"
        return (
            tomllib.loads(source.read_text(encoding="utf-8"))["project"]["version"] if source.is_file() else "unknown"
        )
