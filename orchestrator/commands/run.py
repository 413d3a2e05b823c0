"""`orchestrator run`: the stages of a pipeline that are not done yet."""

from orchestrator.configuration.composer import Composer
from orchestrator.configuration.pipeline import RunPipelineConfig
from orchestrator.display.stages import PlannedRow, StagesDisplay, show_plan
from orchestrator.display.terminal import print_line
from orchestrator.pipeline.admission import check_fits
from orchestrator.pipeline.driver import Driver
from orchestrator.pipeline.graph import checked_stages, with_needed
from orchestrator.pipeline.places import result_name
from orchestrator.pipeline.plan import Judgement, Planner, held_by, recipes_of
from orchestrator.pipeline.progress import Figures
from orchestrator.pipeline.where import place
from orchestrator.runs.stages import read_current
from orchestrator.storage.store import Storage


def run(config: RunPipelineConfig, composer: Composer) -> None:
    """Check every stage, then run what is not done, or only show it."""
    storage = Storage(config.storage.root)
    stages = with_needed(checked_stages(config, composer), config.only)
    planner = Planner(config.pipeline.name, storage, stages, recipes_of(stages, storage))
    if config.dry_run:
        _show(planner, planner.plan(config.force), is_whole=not config.only)
        return
    root = storage.url() if storage.is_local else config.storage.root
    figures = Figures(storage)
    with place(config.cluster) as where, StagesDisplay(f"Pipeline {planner.pipeline}") as display:
        configs = {f"pipeline.stages.{name}": stage.config for name, stage in stages.items()}
        check_fits(configs, where.ledger.total, where.name)
        driver = Driver(
            planner,
            root,
            composer,
            where.ledger,
            where.start,
            lambda progress: display.show(figures.rows(progress)),
            where.address,
            config.cluster.max_failures if where.address else 0,
        )
        driver.run(config.force, config.keep_going)
    for name, one in driver.progress.items():
        result = result_name(stages[name].command, one.path) or one.path
        print_line(f"{name}: {storage.url(result)}")


def _show(planner: Planner, plan: dict[str, Judgement], is_whole: bool) -> None:
    shown = [
        PlannedRow(name, stage.command, _state(plan[name]), _reasons(planner, name, plan[name]))
        for name, stage in planner.stages.items()
    ]
    show_plan(f"Pipeline {planner.pipeline}", shown)
    gone = [name for name in read_current(planner.storage, planner.pipeline) if name not in plan]
    if is_whole and gone:
        print_line(f"no longer in the pipeline, and kept: {', '.join(gone)}")


def _state(judged: Judgement) -> str:
    if judged.state == "resume":
        return f"would resume at step {judged.step}"
    return {"run": "would run", "depends": "would check"}.get(judged.state, judged.state)


def _reasons(planner: Planner, name: str, judged: Judgement) -> list[str]:
    if judged.state == "done":
        # a stage of another name or pipeline has the same recipe
        is_own = judged.path.startswith(f"runs/{planner.pipeline}/{name}-")
        return [] if is_own else [f"made by {judged.path}"]
    holder = planner.holder(name)
    return [*judged.reasons, *([f"{held_by(holder)} runs it now"] if holder else [])]
