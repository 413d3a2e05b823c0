"""Measure a model on tasks of lm-evaluation-harness.

`lm_eval.simple_evaluate` does the same with more around it: it looks at git, the machine and its packages.
"""

import contextlib
import functools
import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lm_eval
from lm_eval.evaluator import evaluate
from tqdm import tqdm

from modules.chat_template import ChatTemplate, find_chat_template
from modules.errors import InputError
from orchestrator.artifacts.digests import digest_bytes
from orchestrator.artifacts.models import TrainedModel
from orchestrator.configuration.groups import HarnessConfig
from orchestrator.evaluation.harness.model import HarnessModel, Progress
from orchestrator.evaluation.harness.tasks import LoadedTasks
from orchestrator.evaluation.record import Evaluation

_FEWSHOT_SEED = 1234
"""lm-eval's own, which decides the solved examples before a question."""
_BOOTSTRAPS = 1000
"""Resamples for the standard error of metrics that have no formula; lm-eval's 100,000 take minutes."""


@dataclass(frozen=True)
class Figure:
    """One metric of a task or a group."""

    task: str
    num_fewshot: int | None
    """Solved examples before each question; None for a group of tasks with different numbers."""
    metric: str
    """Its name, with that of the filter unless it is `none`."""
    value: float
    stderr: float | None


@dataclass(frozen=True)
class Measured:
    """What a model has reached on several tasks."""

    figures: list[Figure]
    evaluations: list[Evaluation]

    @property
    def metrics(self) -> dict[str, float]:
        """By name, as `harness/capitals/acc`."""
        return {f"harness/{figure.task}/{figure.metric}": figure.value for figure in self.figures}


def measure(
    trained: TrainedModel, tasks: LoadedTasks, config: HarnessConfig, name: str, progress: Progress
) -> Measured:
    """Return what a model reaches on tasks.

    Args:
        trained: The model, as it was loaded; it is not usable for anything else any more.
        tasks: What `load_tasks` returned.
        config: How they are measured.
        name: What a message calls the model, such as `model.path=a/b`.
        progress: Receives the requests done, and all of their kind.

    Raises:
        InputError: The model cannot answer such questions, or has no chat template.
    """
    _check_model(trained, config, name)
    template = _template(trained, name) if config.apply_chat_template else None
    model = HarnessModel(
        trained.prepared(config.precision, prepack=False),
        batch_size=config.batch_size,
        max_length=config.max_length or trained.model.config.max_positions,
        template=template,
        progress=progress,
    )
    _set_fewshot(tasks, config.num_fewshot)
    with _quiet():
        found: Any = evaluate(
            lm=model,
            task_dict=tasks.loaded,
            limit=config.limit,
            bootstrap_iters=_BOOTSTRAPS,
            log_samples=False,
            apply_chat_template=config.apply_chat_template,
            fewshot_as_multiturn=True,  # as `simple_evaluate`; without a template it changes nothing
        )
    settings = _settings(model, trained, config, template)
    figures = list(_figures(found))
    subjects = dict.fromkeys(figure.task for figure in figures)
    return Measured(figures, [_evaluation(task, figures, found, tasks, settings, config) for task in subjects])


def _check_model(trained: TrainedModel, config: HarnessConfig, name: str) -> None:
    positions = trained.model.config.max_positions
    if trained.model.config.classifier is not None:
        raise InputError(f"{name}: a classifier, which predicts no text; harness.tasks need a language model")
    if (config.max_length or 0) > positions:
        raise InputError(f"harness.max_length={config.max_length}: the model has {positions} positions")


def _template(trained: TrainedModel, name: str) -> ChatTemplate:
    try:
        return find_chat_template(trained.files, name)
    except InputError as error:
        reason = str(error).partition(";")[0]
        remedy = "set it to false, or put a chat_template.jinja into the model's folder"
        raise InputError(f"harness.apply_chat_template=true: {reason}; {remedy}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have lm-eval draw no bars of its own, print not what it resamples, and warn of no sample without a label."""
    bar: Any = tqdm
    own = bar.__init__
    bar.__init__ = functools.partialmethod(own, disable=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="sklearn")
            yield
    finally:
        bar.__init__ = own


def _set_fewshot(tasks: LoadedTasks, number: int | None) -> None:
    """Set the number of solved examples as `simple_evaluate` does: a task that says 0 keeps it."""
    for task in tasks.loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (number is not None and own != 0):
            task.set_config(key="num_fewshot", value=number or 0)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)


def _figures(found: Mapping[str, Any]) -> Iterator[Figure]:
    """Yield the figures of tasks and groups; lm-eval names them `acc,none` and `acc_stderr,none`."""
    for task, values in {**found["results"], **found.get("groups", {})}.items():
        for key, value in values.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            stderr = values.get(f"{metric}_stderr,{chosen}")
            known = isinstance(stderr, int | float) and math.isfinite(stderr)
            name = metric if chosen == "none" else f"{metric}/{chosen}"
            yield Figure(task, found["n-shot"].get(task), name, float(value), stderr if known else None)


def _settings(
    model: HarnessModel, trained: TrainedModel, config: HarnessConfig, template: ChatTemplate | None
) -> dict[str, Any]:
    """Return what decides the figures of every task."""
    return {
        "lm_eval": lm_eval.__version__,
        "limit": config.limit,
        "max_length": model.max_length,
        "precision": config.precision,
        "bos": [trained.tokenizer.token_of(number) for number in model.begin_ids],
        "prefix": trained.tokenizer.token_of(model.prefix_token_id),
        "chat_template": None if template is None else digest_bytes(template.text.encode()).xxh3_128,
    }


def _evaluation(
    task: str,
    figures: list[Figure],
    found: Mapping[str, Any],
    tasks: LoadedTasks,
    settings: Mapping[str, Any],
    config: HarnessConfig,
) -> Evaluation:
    metrics: dict[str, float] = {}
    for figure in figures:
        if figure.task == task:
            metrics[figure.metric] = figure.value
            metrics |= {} if figure.stderr is None else {f"{figure.metric}_stderr": figure.stderr}
    own = {
        "version": found["versions"].get(task),
        "num_fewshot": found["n-shot"].get(task),
        "config": _digest_of(found["configs"].get(task)),
        "data": dict(tasks.data.get(task, {})),
    }
    details = {"batch_size": config.batch_size, "num_rows": found["n-samples"].get(task)}
    return Evaluation(f"harness/{task}", {**settings, **own}, metrics, details)


def _digest_of(config: Mapping[str, Any] | None) -> str | None:
    """Return what changes with a task's configuration, wherever its files lie."""
    if config is None:
        return None
    kept = {key: value for key, value in config.items() if key not in ("metadata", "dataset_kwargs")}
    text = json.dumps(kept, sort_keys=True, default=lambda value: getattr(value, "__qualname__", str(value)))
    return digest_bytes(text.encode()).xxh3_128
