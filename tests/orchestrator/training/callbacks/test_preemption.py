"""Notices of termination are recorded, and the earlier signal handlers are restored."""

import os
import signal

import pytest

from orchestrator.distributed.runtime import STOP_SIGNALS, Runtime
from orchestrator.training.callbacks.preemption import StopNotices


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_signal_is_noted_and_the_handlers_are_restored(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with StopNotices(Runtime()) as notices:
        assert notices.asked() == 0
        os.kill(os.getpid(), number)
        assert notices.asked() == number
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_a_notice_to_another_process_counts() -> None:
    with StopNotices(Runtime(stop_asked=lambda: int(signal.SIGTERM))) as notices:
        assert notices.asked() == signal.SIGTERM


def test_second_interrupt_ends_a_single_process_at_once_and_waits_for_several() -> None:
    with pytest.raises(SystemExit) as exit_info, StopNotices(Runtime()):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
    assert exit_info.value.code == 128 + signal.SIGINT
    with StopNotices(Runtime(world_size=2)) as notices:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert notices.asked() == signal.SIGINT
