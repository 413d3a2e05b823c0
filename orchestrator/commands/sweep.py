"""`--multirun sweep=METHOD` of a command that trains: its trials side by side, and the best of them."""

import importlib.util
from collections.abc import Sequence

from modules.config import MOST_STEPS
from orchestrator.artifacts.recipe import fingerprint, identity
from orchestrator.checkpoints.attempt import SWEEPS
from orchestrator.configuration.commands import FinetuneConfig, TrainingRunConfig
from orchestrator.configuration.composer import Composer
from orchestrator.configuration.sweep import SweepConfig
from orchestrator.display.stages import StagesDisplay
from orchestrator.display.terminal import print_line
from orchestrator.errors import ConfigError, UserError
from orchestrator.pipeline.admission import check_fits
from orchestrator.pipeline.progress import Figures
from orchestrator.pipeline.where import place
from orchestrator.runs.json_files import write_object
from orchestrator.storage.redaction import redact
from orchestrator.storage.store import Storage
from orchestrator.sweep.driver import Driver, Scheduler
from orchestrator.sweep.findings import best, learned
from orchestrator.sweep.metrics import metrics_of
from orchestrator.sweep.space import Space
from orchestrator.sweep.suggestions import Suggester, Suggestions
from orchestrator.sweep.sweep import Sweep
from orchestrator.sweep.trial import Trial, check_same, trial_name


def run(settings: SweepConfig, command: str, space: Space, composer: Composer) -> None:
    """Check every trial, then run what is not done.

    Args:
        settings: How they are searched.
        command: What each trial runs.
        space: What it chooses from.
        composer: Composes the configuration of each.
    """
    sweep, about, first = _checked(settings, command, space, composer)
    figures = Figures(sweep.storage)
    with place(first.cluster) as where, StagesDisplay(f"Sweep {sweep.name}", "trial") as display:
        # one by one, since one reason is often that of all
        for number, config in (sweep.configs or {0: first}).items():
            check_fits({f"trial {trial_name(number)}": config}, where.ledger.total, where.name)
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
    settings: SweepConfig, command: str, space: Space, composer: Composer
) -> tuple[Sweep, dict[str, object], TrainingRunConfig]:
    """Return the sweep, what is recorded of it, and the configuration of one trial.

    Raises:
        ConfigError: trials have mistakes.
    """

    def compose(trial: Trial) -> TrainingRunConfig:
        config = composer.compose(command, trial.words)
        assert isinstance(config, TrainingRunConfig)
        return config

    suggester = _suggester(settings, space)
    trials = space.trials(settings)
    configs, mistakes = dict[int, TrainingRunConfig](), [_own_mistake(text) for text in space.texts]
    for trial in space.corners() if suggester else trials:
        try:
            configs[trial.number] = compose(trial)
        except ConfigError as error:
            mistakes += str(error).splitlines()
    mistakes += _shared_mistakes(settings, list(configs.values()))
    if found := list(dict.fromkeys(filter(None, mistakes))):
        raise ConfigError("\n".join(found))
    first = configs[0]
    metric = settings.metric or metrics_of(first)[0]
    search = {**identity(settings), "metric": metric}
    about: dict[str, object] = {"command": command, **search, "overrides": [redact(text) for text in space.texts]}
    name = settings.name or f"{command}-{fingerprint(about)[:8]}"
    storage = Storage(first.storage.root)
    own_root = storage.url() if storage.is_local else first.storage.root
    if suggester is None:
        return Sweep(name, command, trials, configs, metric, storage, own_root, tuple(composer.flags)), about, first
    suggestions = Suggestions(space, settings.num_trials or 0, suggester, compose, first)
    flags = tuple(composer.flags)
    return Sweep(name, command, [], {}, metric, storage, own_root, flags, suggestions), about, first


def _suggester(settings: SweepConfig, space: Space) -> Suggester | None:
    """Return who suggests trials; only then is Optuna imported."""
    if settings.method != "optuna":
        return None
    if importlib.util.find_spec("optuna") is None:
        raise UserError("sweep=optuna: needs the package optuna; pip install 'gpt-orchestrator[optuna]'")
    from orchestrator.sweep.tpe import Tpe

    return Tpe(space.settings, settings.seed, settings.num_startup_trials)


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
