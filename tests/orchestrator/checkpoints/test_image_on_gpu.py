"""On a GPU: the memory of a save is page-locked, at each size that it has, and holds what was on the device."""

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.checkpoints.image import Image
from orchestrator.checkpoints.pinning import CudaPinning
from orchestrator.checkpoints.snapshot import Snapshot
from orchestrator.distributed.training_state import MASTER, MOMENTS, Fragment

pytestmark = pytest.mark.gpu
SIZE = 8_000_003


def snapshot(value: float, size: int) -> Snapshot:
    kinds = enumerate((MASTER, *MOMENTS))
    device = torch.device("cuda", 0)
    return Snapshot.of(
        Fragment("w", kind, 0, size, torch.full((size,), value + number, device=device)) for number, kind in kinds
    )


def test_image_is_page_locked_and_holds_the_state() -> None:
    pinning = CudaPinning(torch.device("cuda", 0))
    image = Image(pinning)
    image.reserve(snapshot(0, SIZE).num_bytes)
    for value, size in ((10, SIZE), (20, SIZE), (30, SIZE // 3), (40, SIZE), (50, 2 * SIZE)):
        held = snapshot(value, size)
        image.hold(held)
        for fragment in held.fragments:
            fragment.view.zero_()  # the next step
        assert pinning.failure is None
        assert image.is_pinned
        found = load_file(image.path)
        assert {number for tensor in found.values() for number in tensor.unique().tolist()} == {
            value,
            value + 1,
            value + 2,
        }
    image.close()
    torch.ones(1, device="cuda:0").sum().item()  # no error is left that a later kernel would raise


def test_refused_page_lock_leaves_no_error_for_later_kernels() -> None:
    pinning = CudaPinning(torch.device("cuda", 0))
    memory = torch.empty(1 << 20, dtype=torch.uint8)
    assert pinning.pin(memory)
    assert not pinning.pin(memory)
    assert "cudaHostRegister" in str(pinning.failure)
    assert torch.ones(1, device="cuda:0").add(1).item() == 2
    pinning.unpin(memory)
