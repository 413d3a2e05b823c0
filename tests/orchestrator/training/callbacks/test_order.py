"""The order of the callbacks is written down once, with its reasons, and training follows it."""

import importlib
import itertools
import pkgutil
from pathlib import Path

import pytest
from pytorch_lightning import Callback
from tiny_run import arguments, write_text

from orchestrator.cli import main
from orchestrator.training import callbacks
from orchestrator.training.callbacks.order import ORDER, in_order

NAMES = [name for name, _ in ORDER]


def own_callbacks() -> dict[str, type[Callback]]:
    """Return every callback class that a module of the `callbacks` package defines."""
    here = callbacks.__name__
    modules = [importlib.import_module(f"{here}.{info.name}") for info in pkgutil.iter_modules(callbacks.__path__)]
    classes = [item for module in modules for item in vars(module).values() if isinstance(item, type)]
    own = [one for one in classes if issubclass(one, Callback) and one.__module__.startswith(here)]
    return {one.__name__: one for one in own if not one.__name__.startswith("_")}


def unmade(name: str) -> Callback:
    """Return an instance without running its constructor: `in_order` looks only at its class."""
    return object.__new__(own_callbacks()[name])


def test_order_lists_exactly_the_callbacks_that_exist() -> None:
    assert sorted(NAMES) == sorted(own_callbacks())
    assert all(reason for _, reason in ORDER)


def test_callbacks_act_in_the_written_order_however_they_are_given() -> None:
    for turn in itertools.islice(itertools.permutations(NAMES), 0, 400, 37):
        assert [type(one).__name__ for one in in_order(map(unmade, turn)).callbacks] == NAMES


def test_hooks_without_a_callback_are_not_called() -> None:
    together = in_order([unmade("Throughput")])
    assert callable(together.on_train_batch_end)
    # Lightning would measure the time of each call, of which a step has four
    assert not callable(together.on_after_backward)


def test_callback_that_is_not_in_the_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Callback is not in ORDER of callbacks/order\.py"):
        in_order([Callback()])


def test_training_runs_its_callbacks_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acted: list[str] = []

    def noted(name: str, original: object) -> object:
        def act(self: Callback, *args: object) -> object:
            acted.append(name)
            return original(self, *args)  # type: ignore[operator]

        return act

    for name, kind in own_callbacks().items():
        if "on_train_batch_end" in vars(kind):
            monkeypatch.setattr(kind, "on_train_batch_end", noted(name, kind.on_train_batch_end))
    text = write_text(tmp_path / "text.txt")
    assert main(arguments(text, tmp_path, "training.num_steps=3", "tracking.mode=disabled")) == 0
    assert acted[: len(acted) // 3] * 3 == acted
    assert len(acted) == 3 * 8
    assert acted[:8] == [name for name in NAMES if name in acted[:8]]
