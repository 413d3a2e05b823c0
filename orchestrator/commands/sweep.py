"""`--multirun sweep=METHOD` of a command that trains: its trials side by side, and the best of them."""

from collections.abc import Sequence

from modules.config import MOST_STEPS
from orchestrator.artifacts.recipe import fingerprint, identity
from orchestrator.checkpoints.attempt import SWEEPS
from orchestrator.commands.run import place
from orchestrator.configuration.commands import FinetuneConfig, TrainingRunConfig
from orchestrator.configuration.composer import Composer
from orchestrator.configuration.sweep import SweepConfig
from orchestrator.display.stages import StagesDisplay
from orchestrator.display.terminal import print_line
from orchestrator.errors import ConfigError
from orchestrator.pipeline.admission import check_fits
from orchestrator.pipeline.progress import Figures
from orchestrator.runs.json_files import write_object
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage
from orchestrator.sweep.driver import Driver, Scheduler, Sweep
from orchestrator.sweep.findings import best, learned
from orchestrator.sweep.metrics import metrics_of
from orchestrator.sweep.trial import Trial, check_same


def run(settings: SweepConfig, command: str, texts: Sequence[str], trials: Sequence[Trial], composer: Composer) -> None:
    """Check every trial, then run what is not done.

    Args:
        settings: How they are searched.
        command: What each trial runs.
        texts: The overrides that all trials come from, as they are typed.
        trials: All trials.
        composer: Composes the configuration of each.
    """
    sweep, about = _checked(settings, command, texts, trials, composer)
    first = next(iter(sweep.configs.values()))
    figures = Figures(sweep.storage)
    with place(first.cluster) as where, StagesDisplay(f"Sweep {sweep.name}") as display:
        for trial in sweep.trials:  # one after another, since one reason is often that of all
            check_fits({f"trial {trial.name}": sweep.configs[trial.number]}, where.ledger.total, where.name)
        check_same(sweep.storage, sweep.name, about)
        driver = Driver(
            sweep,
            where.ledger,
            where.start,
            lambda progress: display.show(figures.rows(progress)),
            _scheduler(sweep, settings),
            where.address,
            first.cluster.max_failures if where.address else 0,
        )
        try:
            driver.run()
        finally:
            _conclude(sweep, driver)


def _checked(
    settings: SweepConfig, command: str, texts: Sequence[str], trials: Sequence[Trial], composer: Composer
) -> tuple[Sweep, dict[str, object]]:
    """Return the sweep, and what is recorded of it.

    Raises:
        ConfigError: trials have mistakes.
    """
    configs, mistakes = dict[int, TrainingRunConfig](), [_own_mistake(text) for text in texts]
    for trial in trials:
        try:
            config = composer.compose(command, trial.words)
            assert isinstance(config, TrainingRunConfig)
            configs[trial.number] = config
        except ConfigError as error:
            mistakes += str(error).splitlines()
    mistakes += _shared_mistakes(settings, list(configs.values()))
    if found := list(dict.fromkeys(filter(None, mistakes))):
        raise ConfigError("\n".join(found))
    metric = settings.metric or metrics_of(configs[trials[0].number])[0]
    search = {**identity(settings), "metric": metric}
    about: dict[str, object] = {"command": command, **search, "overrides": [redact(text) for text in texts]}
    name = settings.name or f"{command}-{fingerprint(about)[:8]}"
    root = configs[trials[0].number].storage.root
    storage = Storage(root)
    own_root = storage.url() if storage.is_local else root
    return Sweep(name, command, trials, configs, metric, storage, own_root, tuple(composer.flags)), about


def _own_mistake(text: str) -> str:
    key = text.lstrip("+").partition("=")[0]
    return "run.name: a sweep names its runs; set sweep.name instead" if key == "run.name" else ""


def _shared_mistakes(settings: SweepConfig, configs: Sequence[TrainingRunConfig]) -> list[str]:
    """Return a line for each setting that must be the same in all trials and is not, or that a sweep cannot have."""
    found = []
    if len({config.storage.root for config in configs}) > 1:
        found.append("storage.root: must be the same in all trials of a sweep")
    if len({(config.cluster.name, config.cluster.address) for config in configs}) > 1:
        found.append("cluster.name, cluster.address: must be the same in all trials of a sweep")
    measured = [metrics_of(config) for config in configs]
    if settings.metric is None and len({names[0] for names in measured}) > 1:
        found.append("sweep.metric: must be given, since the trials choose their best checkpoints by different metrics")
    if lacking := [names for names in measured if settings.metric and settings.metric not in names]:
        found.append(f"sweep.metric={settings.metric}: is not measured; choose {' or '.join(lacking[0])}")
    if settings.method == "asha" and settings.grace_period is None and any(map(_counts_epochs, configs)):
        found.append("sweep.grace_period: must be given, since finetune.num_epochs says how long each trial trains")
    if any(config.cluster.name == "torchrun" for config in configs):
        found.append("cluster=torchrun: its processes are started already; a sweep needs cluster=local or cluster=ray")
    return found


def _counts_epochs(config: TrainingRunConfig) -> bool:
    return isinstance(config, FinetuneConfig) and config.finetune.num_epochs is not None


def _scheduler(sweep: Sweep, settings: SweepConfig) -> Scheduler | None:
    """Return who stops trials early; only then is Ray Tune imported."""
    if settings.method != "asha":
        return None
    from orchestrator.cluster.ray_asha import Asha

    configs = sweep.configs.values()
    most = max(MOST_STEPS if _counts_epochs(config) else config.training.num_steps for config in configs)
    return Asha(most, settings.grace_period or max(1, most // 9), settings.reduction_factor)


def _conclude(sweep: Sweep, driver: Driver) -> None:
    """Print and write what was found; the sweep may be unfinished."""
    if not driver.outcomes:
        return
    metric, found = sweep.metric, best(sweep.trials, driver.outcomes, sweep.metric)
    if found is None:
        return
    value, name = driver.outcomes[found.number].value, f"{sweep.name}/{found.name}"
    swept = {setting: redact(text) for setting, text in found.swept.items()}
    content = {"trial": found.name, "run": name, "metric": metric, "value": value, "swept": swept}
    write_object(sweep.storage, f"{SWEEPS}/{sweep.name}/best.json", content)
    chosen = " ".join(f"{setting}={text}" for setting, text in swept.items())
    print_line(f"best: trial {found.name} with {metric} {value:.5g}: {chosen}")
    print_line(f"its run: {sweep.storage.url(f'runs/{name}')}")
    print_line(learned(sweep.trials, driver.outcomes, metric))
