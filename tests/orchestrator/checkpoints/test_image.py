"""The memory of a save: page-locked once, waited for once a save, and never page-locked beyond the end of its file."""

import mmap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import arguments, write_text
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from modules.model_config import ModelConfig
from orchestrator.checkpoints.image import Image
from orchestrator.checkpoints.pinning import CudaPinning
from orchestrator.checkpoints.snapshot import Snapshot
from orchestrator.cli import main
from orchestrator.distributed.training_state import MASTER, MOMENTS, Fragment
from orchestrator.planning import memory as planning
from orchestrator.training.callbacks import checkpoints

SIZES = {"a": 3, "b": 70_000, "c": 5_000}


class StandIn:
    """Notes what a GPU would be asked for."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.calls: list[tuple[str, int, int]] = []
        """What was asked for, the address, and the bytes."""
        self.num_waits = 0
        self.failure = "a reason" if refuses else None

    def pin(self, memory: Tensor) -> bool:
        self.calls.append(("pin", memory.data_ptr(), memory.numel()))
        return self.failure is None

    def unpin(self, memory: Tensor) -> None:
        memory[-1] += 0  # fails if the pages were given back before
        self.calls.append(("unpin", memory.data_ptr(), memory.numel()))

    def wait(self) -> None:
        self.num_waits += 1


class Copies(TorchDispatchMode):
    """Counts copies of values, and those for which the host does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.num_begun = self.num_waited_for = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.name() == "aten::copy_" and args[1].dtype == torch.float32:
            self.num_begun += bool(args[2:] and args[2])
            self.num_waited_for += not (args[2:] and args[2])
        return operator(*args, **(kwargs or {}))


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def image(stand_in: StandIn) -> Iterator[Image]:
    image = Image(stand_in)
    yield image
    image.close()


def snapshot(value: float, kinds: tuple[str, ...] = (MASTER, *MOMENTS)) -> Snapshot:
    return Snapshot.of(
        Fragment(name, kind, 0, size, torch.full((size,), value + number))
        for name, size in SIZES.items()
        for number, kind in enumerate(kinds)
    )


def values(image: Image) -> set[float]:
    """Return the values that another process finds in the file."""
    return {number for tensor in load_file(image.path).values() for number in tensor.unique().tolist()}


def test_memory_is_page_locked_once_and_each_save_waits_once(image: Image, stand_in: StandIn) -> None:
    image.reserve(snapshot(0, (MASTER,)).num_bytes_with_moments)
    with Copies() as copies:
        for value in (10, 20, 30):
            image.hold(snapshot(value))
            assert values(image) == {value, value + 1, value + 2}
    ((what, address, num_bytes),) = stand_in.calls
    assert (what, num_bytes) == ("pin", snapshot(0).num_bytes)
    assert address % mmap.PAGESIZE == 0
    assert stand_in.num_waits == 3
    assert (copies.num_begun, copies.num_waited_for) == (3 * len(SIZES) * 3, 0)


def test_pages_are_unlocked_before_the_file_gives_them_back(image: Image, stand_in: StandIn) -> None:
    small, large = snapshot(1, (MASTER,)), snapshot(5)
    for each in (large, small, large):
        image.hold(each)
        assert Path(image.path).stat().st_size == each.num_bytes
        assert values(image) == set(range(5, 8) if each is large else (1,))
    sizes = [(what, num_bytes) for what, _, num_bytes in stand_in.calls]
    pinned = [large.num_bytes, small.num_bytes, large.num_bytes]
    assert sizes == [(what, size) for size in pinned for what in ("pin", "unpin")][:-1]
    image.reserve(small.num_bytes)
    assert [what for what, _, _ in stand_in.calls] == ["pin", "unpin"] * 3 + ["pin"]


def test_closing_unlocks_what_is_locked(stand_in: StandIn) -> None:
    image = Image(stand_in)
    image.hold(snapshot(1))
    image.close()
    assert [what for what, _, _ in stand_in.calls] == ["pin", "unpin"]


def test_memory_that_cannot_be_page_locked_is_used_all_the_same() -> None:
    stand_in = StandIn(refuses=True)
    image = Image(stand_in)
    image.hold(snapshot(1))
    image.hold(snapshot(2, (MASTER,)))
    assert values(image) == {2}
    image.close()
    assert [what for what, _, _ in stand_in.calls] == ["pin", "pin"]
    assert stand_in.num_waits == 2


class Cudart:
    """Notes the calls of CUDA's functions, with the thread that called."""

    def __init__(self, code: int) -> None:
        self._code = code
        self.calls: list[tuple[str, int, int]] = []

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        self.calls.append(("register", address, num_bytes))
        self.thread = threading.get_ident()
        return self._code

    def cudaHostUnregister(self, address: int) -> int:
        self.calls.append(("unregister", address, 0))
        return 0


@pytest.mark.parametrize("code", [0, 1])
def test_cuda_is_asked_on_the_gpu_of_this_process_and_by_a_thread_of_its_own(
    code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudart, devices, device = Cudart(code), list[torch.device](), torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cudart)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    pinning, memory = CudaPinning(device), torch.empty(4096, dtype=torch.uint8)
    assert pinning.pin(memory) == (code == 0)
    assert pinning.failure == ("cudaHostRegister failed with error 1" if code else None)
    pinning.unpin(memory)
    assert cudart.calls == [("register", memory.data_ptr(), 4096), ("unregister", memory.data_ptr(), 0)]
    assert devices == [device, device]
    assert cudart.thread != threading.get_ident()


@pytest.mark.slow
def test_training_page_locks_what_plan_counts_and_says_if_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in = StandIn(refuses=True)
    monkeypatch.setattr(checkpoints, "pinning_of", lambda state: stand_in)
    settings = "training.num_steps=3", "checkpoint.interval_steps=1", "tracking.mode=disabled", "run.name=a"
    assert main(arguments(write_text(tmp_path / "text.txt"), tmp_path, *settings, "objective=clm")) == 0
    ((_, _, num_bytes),) = stand_in.calls
    assert stand_in.num_waits == 3
    model = ModelConfig(num_layers=2, num_heads=2, hidden_dim=32, max_positions=32)
    planned = planning.memory(planning.Setting(model, 257, "32", 32, 8), "single").host
    assert planned < num_bytes < 1.05 * planned
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("the copy of a save is not page-locked, so training waits longer for it: a reason") == 1
