"""The tasks of lm-evaluation-harness that a command names, checked before anything of them is run or fetched."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.api.metrics
import lm_eval.filters
import lm_eval.tasks
import yaml
from lm_eval.api.registry import aggregation_registry, filter_registry, metric_agg_registry, metric_registry
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry, Kind

from orchestrator.configuration.groups import HarnessConfig
from orchestrator.configuration.schema import nearest, shown
from orchestrator.errors import OrchestratorError, UserError
from orchestrator.evaluation.harness.generating import KNOWN
from orchestrator.storage.access import is_local
from orchestrator.storage.input_files import StoredFile, find_files

_READERS = ("json", "csv", "parquet", "text", "arrow")
"""Readers of files in `datasets`; any other name would be asked for in a hub."""
_OWN_TASKS = Path(str(lm_eval.tasks.__file__)).resolve().parent


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks with their data, in lm-eval's own form."""

    loaded: Any
    """What `TaskManager.load` returns: `tasks` and `groups` by name."""
    data: Mapping[str, Mapping[str, str]]
    """The digest of each file of a task's data, by the names of task and file."""


def load_tasks(config: HarnessConfig) -> LoadedTasks:
    """Return the tasks that the configuration names, with those of the groups among them.

    A task is refused if it would have data or a metric fetched from a hub, or if it runs code that lies neither in the
    folder of the user's tasks nor in lm-eval itself. Functions in that folder are run: who names it vouches for it, as
    for any program of his own.

    Raises:
        UserError: lists the names that are unknown and the tasks that are refused, with the reasons.
    """
    folder = _folder(config.include_path)
    manager = _manager(config.tasks, folder)
    factory = _CheckingFactory([_OWN_TASKS, *([folder] if folder else [])])
    manager._factory = factory
    built, mistakes = [], []
    for name in dict.fromkeys(config.tasks):
        try:
            built += _built(manager, name)
        except UserError as error:
            mistakes.append(f"harness.tasks: {error}")
    if mistakes:
        raise UserError("\n".join(mistakes))
    try:
        return LoadedTasks(manager.load(built), factory.data)
    except ValueError as error:
        raise UserError(f"harness.tasks: {error}; name it once") from None


def _built(manager: TaskManager, name: str) -> list[Any]:
    """Return the task or group of that name, or all tasks of a tag."""
    if name not in manager.task_index:
        raise _unknown(manager, name)
    try:
        found = manager._load_spec(name)
    except OrchestratorError:
        raise
    except Exception as error:  # a task is a text of others, which lm-eval, datasets and Jinja read each in its own way
        reason = str(error).strip().splitlines()[:1] or [""]
        problem = f"{type(error).__name__}: {reason[0]}"
        raise UserError(f"{name}: lm-eval cannot make this task ({problem}); correct it") from error
    return found if isinstance(found, list) else [found]


def _unknown(manager: TaskManager, name: str) -> UserError:
    near = nearest(name, manager.all_tasks)
    remedy = f"did you mean {near}?" if near else "it is looked for in harness.include_path and among lm-eval's own"
    unread = _unread_files(manager.include_path)
    rest = f"; these files there cannot be read: {', '.join(unread)}" if unread else ""
    return UserError(f"{shown(name)}: no such task or group; {remedy}{rest}")


def _unread_files(folder: Any) -> list[str]:
    """Return the files of a folder that are no YAML, which lm-eval leaves out without a word."""
    found = []
    for path in sorted(Path(folder).glob("**/*.yaml")) if folder else []:
        try:
            yaml.compose(path.read_bytes())
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            found.append(f"{path.name} (line {mark.line + 1})" if mark else path.name)
    return found


def _folder(path: str | None) -> Path | None:
    if path is None:
        return None
    folder = Path(path).expanduser().resolve()
    if not is_local(path) or not folder.is_dir():
        raise UserError(f"harness.include_path={shown(path)}: no folder on this machine; name the one with the tasks")
    return folder


def _manager(names: Sequence[str], folder: Path | None) -> TaskManager:
    """Return the index of tasks: lm-eval's own 15,000 take ten seconds to read, and are read only if one is needed."""
    if folder:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if set(names) <= set(own.task_index):
            return own
    return TaskManager(include_path=str(folder) if folder else None)


class _CheckingFactory(TaskFactory):
    """Makes tasks as lm-eval does, each after a check of its whole configuration."""

    def __init__(self, code_folders: Sequence[Path]) -> None:
        super().__init__()
        self._code_folders = code_folders
        self.data: dict[str, dict[str, str]] = {}

    def _load_full_config(self, entry: Entry, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        if entry.yaml_path:
            self._check_functions(entry)  # the next line imports them
        config = super()._load_full_config(entry, overrides)
        if entry.kind is not Kind.GROUP:
            self._check(entry.name, config, entry.yaml_path)
        return config

    def _build_group_members(
        self,
        member_list: list[str | dict[str, Any]],
        group_name: str,
        overrides: dict[str, Any] | None,
        registry: dict[str, Entry],
    ) -> list[Any]:
        for item in member_list:  # those that stand in no file of their own are made at once
            fields = {"task": item} if isinstance(item, str) else item
            if "group" not in fields and fields.get("task") not in registry:
                self._check(f"{group_name}::{fields.get('task')}", {**(overrides or {}), **fields}, None)
        return super()._build_group_members(member_list, group_name, overrides, registry)

    def _check_functions(self, entry: Entry) -> None:
        for place, name in _functions(Path(str(entry.yaml_path))):
            module = (place / f"{name.rpartition('.')[0].replace('.', '/')}.py").resolve()
            if not module.is_file() or not any(module.is_relative_to(folder) for folder in self._code_folders):
                raise UserError(
                    f"{entry.name}: runs {name}, which is no function in a Python file beside the task; copy it there"
                )

    def _check(self, name: str, config: Mapping[str, Any], file: Path | None) -> None:
        for field, what in _REFUSED.items():
            if config.get(field):
                raise UserError(f"{name}: {what}")
        _check_metrics(name, config)
        _check_filters(name, config)
        _check_generation(name, config)
        files = _data_files(name, config, file)
        self.data[name] = {file.name: file.identity() for file in files}


_REFUSED = {
    "class": "is written in Python, so what it fetches cannot be told; write it as YAML",
    "custom_dataset": "makes its data in Python, so what it fetches cannot be told; write the rows into a file",
    "unsafe_code": "runs what the model writes (unsafe_code), which is not done here",
    "use_prompt": "takes its prompt from another library (use_prompt); write it in doc_to_text",
    "doc_to_image": "shows pictures, and models here read text alone",
    "doc_to_audio": "plays sounds, and models here read text alone",
}


def _data_files(name: str, config: Mapping[str, Any], file: Path | None) -> list[StoredFile]:
    """Return the files that hold a task's data.

    Raises:
        UserError: They are not on this machine.
    """
    path, reads = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    is_own = file is not None and file.resolve().is_relative_to(_OWN_TASKS)
    remedy = f"in a task of your own, include: {file} and name" if is_own else "name"
    remedy += f" files with its rows, dataset_path: {' or '.join(_READERS[:3])} and dataset_kwargs: {{data_files: …}}"
    if path not in _READERS:
        raise UserError(f"{name}: its data {shown(str(path))} would come from a hub, which is not asked; {remedy}")
    given = reads.get("data_files")
    paths = _texts(given)
    if not paths or not all(map(is_local, paths)):
        raise UserError(f"{name}: data_files={shown(given)} names no file on this machine; {remedy}")
    try:
        return find_files(paths)
    except UserError as error:
        raise UserError(f"{name}: data_files: {error}") from None


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    items = value if isinstance(value, list) else [value]
    return [text for item in items for text in (_texts(item) if isinstance(item, list) else [str(item)]) if item]


def _check_metrics(name: str, config: Mapping[str, Any]) -> None:
    """Refuse metrics that lm-eval does not have: it would have the library `evaluate` fetch code from a hub."""
    for given in config.get("metric_list") or []:
        metric, aggregation = given.get("metric"), given.get("aggregation")
        is_own = callable(metric) or config.get("process_results") is not None
        if not is_own and (str(metric) not in metric_registry or given.get("hf_evaluate")):
            raise UserError(
                f"{name}: the metric {shown(str(metric))} would come from a hub, which is not asked; "
                f"{_one_of(str(metric), list(metric_registry))}"
            )
        if isinstance(aggregation, str) and aggregation not in aggregation_registry:
            near = _one_of(aggregation, list(aggregation_registry))
            raise UserError(f"{name}: no aggregation {shown(aggregation)}; {near}")
        if aggregation is None and str(metric) not in metric_agg_registry:
            raise UserError(f"{name}: the metric {shown(str(metric))} has no aggregation; give one, such as mean")


def _check_filters(name: str, config: Mapping[str, Any]) -> None:
    for chain in config.get("filter_list") or []:
        for step in chain.get("filter") or []:
            function = step.get("function")
            if not callable(function) and function not in filter_registry:
                raise UserError(
                    f"{name}: no filter {shown(str(function))}; {_one_of(str(function), [*filter_registry])}"
                )


def _check_generation(name: str, config: Mapping[str, Any]) -> None:
    for field in config.get("generation_kwargs") or {}:
        if field not in KNOWN:
            raise UserError(f"{name}: no setting generation_kwargs.{field} here; {_one_of(field, sorted(KNOWN))}")


def _one_of(name: str, names: Sequence[str]) -> str:
    near = nearest(name, list(names))
    return f"did you mean {near}?" if near else f"there are {', '.join(names)}"


def _functions(path: Path, seen: frozenset[Path] = frozenset()) -> Iterator[tuple[Path, str]]:
    """Yield the functions that a file and those it includes name by `!function`, each with its file's folder."""
    path = path.resolve()
    root = yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
    if root is None or path in seen:
        return
    yield from ((path.parent, node.value) for node in _nodes(root) if node.tag == "!function")
    for key, value in root.value if isinstance(root, yaml.MappingNode) else []:
        if key.value == "include":
            for node in _nodes(value):
                if isinstance(node, yaml.ScalarNode):
                    yield from _functions(path.parent / node.value, seen | {path})


def _nodes(node: yaml.Node) -> Iterator[Any]:
    yield node
    for child in node.value if isinstance(node, yaml.CollectionNode) else []:
        for part in child if isinstance(child, tuple) else (child,):
            yield from _nodes(part)
