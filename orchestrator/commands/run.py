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
from orchestrator.storage.store import Storage


def run(config: RunPipelineConfig, composer: Composer) -> None:
    """Check every stage, then run what is not done, or only show it."""
    storage = Storage(config.storage.root)
    stages = with_needed(checked_stages(config, composer), config.only)
    planner = Planner(config.pipeline.name, storage, stages, recipes_of(stages, storage))
    if config.dry_run:
        _show(planner, planner.plan(config.force))
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


def _show(planner: Planner, plan: dict[str, Judgement]) -> None:
    shown = [
        PlannedRow(name, stage.command, _state(plan[name]), _reasons(planner, name, plan[name]))
        for name, stage in planner.stages.items()
    ]
    show_plan(f"Pipeline {planner.pipeline}", shown)


def _state(judged: Judgement) -> str:
    if judged.state == "resume":
        return f"would resume at step {judged.step}"
    return {"run": "would run", "depends": "would check"}.get(judged.state, judged.state)


def _reasons(planner: Planner, name: str, judged: Judgement) -> list[str]:
    holder = planner.holder(name) if judged.state != "done" else None
    return [*judged.reasons, *([f"{held_by(holder)} runs it now"] if holder else [])]
