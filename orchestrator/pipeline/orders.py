"""The command line of a stage's child: the user's overrides, the places of inputs and result, and its share."""

from collections.abc import Mapping

from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.pipeline import places
from orchestrator.pipeline.admission import Share
from orchestrator.pipeline.graph import Composer, Stage
from orchestrator.pipeline.plan import Judgement, Planner


def order_of(
    stage: Stage,
    planner: Planner,
    composer: Composer,
    root: str,
    path: str,
    judged: Mapping[str, Judgement],
    share: Share,
) -> tuple[str, ...]:
    """Return the words after `orchestrator`.

    Args:
        stage: The stage.
        planner: Knows the other stages.
        composer: Knows the flags.
        root: The storage root.
        path: The stage's folder.
        judged: Where the results of the stages before it are.
        share: What it gets.
    """
    kind = composer.kind(stage.command)
    folders = {name: one.path for name, one in judged.items()}
    commands = {name: other.command for name, other in planner.stages.items()}
    inputs = [
        places.input_override(planner.storage, kind, setting, value, folders, commands)
        for setting, value in stage.links.items()
    ]
    own = places.overrides(root, kind, stage.command, path)
    fixed = [f"cluster.num_workers={share.num_workers}"] if share.is_fixed else []
    cluster = fixed if isinstance(stage.config, TrainingRunConfig) else []
    return (stage.command, *composer.flags, *stage.overrides, *inputs, *own, *cluster)
