"""The command line of a stage's child: the user's overrides, the places of inputs and result, and its share."""

from collections.abc import Mapping, Sequence

from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.pipeline import places
from orchestrator.pipeline.admission import Share
from orchestrator.pipeline.graph import Stage
from orchestrator.pipeline.plan import Judgement, Planner


def order_of(
    stage: Stage,
    words: Sequence[str],
    planner: Planner,
    root: str,
    path: str,
    judged: Mapping[str, Judgement],
    share: Share,
    address: str | None,
) -> tuple[str, ...]:
    """Return the words after `orchestrator`.

    Args:
        stage: The stage.
        words: Flags and the user's overrides.
        planner: Knows the other stages.
        root: The storage root.
        path: The stage's folder.
        judged: Where the results of the stages before it are.
        share: What it gets.
        address: The Ray cluster that it joins if it trains; None without one.
    """
    kind = type(stage.config)
    folders = {name: one.path for name, one in judged.items()}
    commands = {name: other.command for name, other in planner.stages.items()}
    inputs = [
        places.input_override(planner.storage, kind, setting, value, folders, commands)
        for setting, value in stage.links.items()
    ]
    own = places.overrides(root, kind, stage.command, path)
    cluster = cluster_words(share, address) if isinstance(stage.config, TrainingRunConfig) else []
    return (stage.command, *words, *inputs, *own, *cluster)


def cluster_words(share: Share, address: str | None) -> list[str]:
    """Return the settings of a training that joins its driver's cluster, or gets a fixed part of it."""
    joins = [] if address is None else ["cluster.name=ray", f"cluster.address={address}"]
    return [*joins, *([f"cluster.num_workers={share.num_workers}"] if share.is_fixed else [])]
