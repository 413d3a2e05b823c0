"""Batches made ahead are the same, in the same order; errors come when their batch is asked for."""

import sys
import threading

import pytest
import torch

from modules.data import ahead
from modules.data.ahead import DEPTH, MadeAhead, Packed


def test_items_come_in_order_and_no_more_are_made_than_asked_for():
    made = []

    def items():
        for number in range(100):
            made.append((number, threading.current_thread().name))
            yield number

    stream = iter(MadeAhead(items(), lambda number: number * 2))
    assert [next(stream) for _ in range(10)] == list(range(0, 20, 2))
    stream.close()
    assert 10 <= len(made) <= 10 + DEPTH
    assert all(name.startswith("batches") for _, name in made)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_the_end_of_the_items_is_the_end():
    assert list(MadeAhead([1, None, 3], lambda item: item)) == [1, None, 3]
    assert list(MadeAhead([], lambda item: item)) == []


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("the store is gone")

    stream = iter(MadeAhead(items(), lambda item: item))
    assert next(stream) == 1
    with pytest.raises(OSError, match="the store is gone"):
        next(stream)


def test_items_are_made_while_nobody_asks():
    made = threading.Event()

    def items():
        yield 1
        made.set()
        yield 2

    stream = iter(MadeAhead(items(), lambda item: item))
    next(stream)
    assert made.wait(timeout=30)


def test_an_item_is_handed_over_without_a_call_of_python():
    are_made = threading.Event()

    def items():
        yield from range(4)
        are_made.set()
        yield 4

    stream = iter(MadeAhead(items(), lambda item: item))
    next(stream)
    assert are_made.wait(timeout=30)
    called = []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
    next(stream)
    sys.setprofile(None)
    assert called == ["__iter__"]  # the generator itself goes on


def test_the_other_thread_is_woken_once_in_several_items(monkeypatch: pytest.MonkeyPatch):
    woken = []

    class Recorded(ahead.SimpleQueue):
        def get(self, *args):
            if threading.current_thread().name == "batches":
                woken.append(True)
            return super().get(*args)

    monkeypatch.setattr(ahead, "SimpleQueue", Recorded)
    stream = iter(MadeAhead(range(100), lambda item: item))
    assert [next(stream) for _ in range(80)] == list(range(80))
    stream.close()
    assert len(woken) <= 1 + 80 / (DEPTH / 2) + 1


def test_a_packed_batch_is_the_batch():
    windows = torch.arange(12).view(2, 6)
    batch = {
        "input_ids": windows[:, :-1],
        "targets": windows[:, 1:],
        "document_ids": torch.tensor([[1, 2, 3]], dtype=torch.int32),
        "empty": torch.empty(0, 3, dtype=torch.int64),
        "weights": torch.tensor([0.5, 1.5]),
        "step": 7,
    }
    found = Packed.of(batch, pinned=False).to(torch.device("cpu"))
    assert found.keys() == batch.keys()
    assert found["step"] == 7
    for name, value in batch.items():
        if name != "step":
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
    assert len({found[name].untyped_storage().data_ptr() for name in found if name != "step"}) == 1
