"""`orchestrator run`: the stages of a pipeline that are not done yet."""

from orchestrator.configuration.pipeline import RunPipelineConfig
from orchestrator.display.stages import PlannedRow, StagesDisplay, show_plan
from orchestrator.display.terminal import print_line
from orchestrator.pipeline.admission import Ledger, check_fits, machine
from orchestrator.pipeline.child import Child
from orchestrator.pipeline.driver import Driver
from orchestrator.pipeline.graph import Composer, checked_stages, with_needed
from orchestrator.pipeline.plan import Judgement, Planner, held_by, recipes_of
from orchestrator.pipeline.progress import Figures
from orchestrator.storage.store import Storage


def run(config: RunPipelineConfig, composer: Composer) -> None:
    """Check every stage, then run what is not done, or only show it."""
    storage = Storage(config.storage.root)
    stages = with_needed(checked_stages(config, composer), config.only)
    planner = Planner(config.pipeline.name, storage, stages, recipes_of(stages, storage))
    if config.dry_run:
        _show(planner, planner.plan(config.force))
        return
    total = machine()
    check_fits(stages, total, "this machine")
    root = storage.url() if storage.is_local else config.storage.root
    figures = Figures(storage)
    with StagesDisplay(f"Pipeline {planner.pipeline}") as display:
        driver = Driver(
            planner, root, composer, Ledger(total), Child, lambda progress: display.show(figures.rows(progress))
        )
        driver.run(config.force, config.keep_going)
    for name, one in driver.progress.items():
        print_line(f"{name}: {storage.url(one.path)}")


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
