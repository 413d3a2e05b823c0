"""What the machine has: processors, memory, shared memory, GPUs."""

import os
import shutil

import psutil

from modules.cores import num_cores
from modules.processor import bfloat16_instructions
from orchestrator.display.units import size
from orchestrator.doctor.findings import Finding

SHARED_MEMORY = "/dev/shm"  # noqa: S108  # Linux's own name
LEAST_SHARED_BYTES = 2**30
LEAST_FREE_MEMORY_BYTES = 2 * 2**30


def processors() -> Finding:
    """Count the processors that this process may use, and the memory, and see how they compute bfloat16."""
    usable, present = num_cores(), os.cpu_count() or 1
    memory = psutil.virtual_memory()
    cpus = f"{usable} CPU{'s' if usable != 1 else ''}" + (f" of {present}" if usable < present else "")
    by = " and ".join(bfloat16_instructions()) or "emulation, slower than float32"
    text = f"{cpus}, {size(memory.total)} memory, {size(memory.available)} of it free; bfloat16 by {by}"
    if memory.available < LEAST_FREE_MEMORY_BYTES:
        return Finding("warning", text, "end other programs here, or choose a small model and micro-batch")
    return Finding("ok", text)


def shared_memory() -> Finding:
    """Measure the shared memory, in which Ray keeps its objects; containers often get 64 MB."""
    if not os.path.isdir(SHARED_MEMORY):
        return Finding(
            "warning", f"no {SHARED_MEMORY}: Ray keeps its objects on the disk, slowly", "mount a tmpfs there"
        )
    usage = shutil.disk_usage(SHARED_MEMORY)
    text = f"{SHARED_MEMORY} has {size(usage.total)}, {size(usage.free)} of it free"
    if usage.free < LEAST_SHARED_BYTES:
        remedy = "docker run --shm-size=8g, or a Kubernetes emptyDir with medium: Memory; or free some"
        return Finding("warning", f"{text}: Ray keeps its objects on the disk, slowly", remedy)
    return Finding("ok", text)


def gpus() -> Finding:
    """Count the GPUs that torch sees, and look for NCCL, through which several GPUs communicate."""
    import torch

    if torch.cuda.is_available():
        return _visible_gpus()
    if shutil.which("nvidia-smi") is None:
        return Finding("ok", f"none; torch {torch.__version__} computes on the CPU")
    if torch.version.cuda is None:
        remedy = f"pip install torch=={torch.__version__.partition('+')[0]} in its CUDA build"
        return Finding(
            "warning", f"nvidia-smi is here, but torch {torch.__version__} is built for the CPU alone", remedy
        )
    text = f"nvidia-smi is here, but torch {torch.__version__} sees no GPU"
    remedy = f"a driver for CUDA {torch.version.cuda} or later; in a container --gpus=all; look at CUDA_VISIBLE_DEVICES"
    return Finding("warning", text, remedy)


def _visible_gpus() -> Finding:
    import torch
    from torch.cuda import nccl

    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    models = sorted({f"{properties.name} ({size(properties.total_memory)})" for properties in found})
    text = f"{len(found)} x {', '.join(models)}, CUDA {torch.version.cuda}"
    if len(found) > 1 and not torch.distributed.is_nccl_available():
        return Finding("warning", f"{text}, without NCCL: several GPUs cannot train together", "pip's build of torch")
    return Finding("ok", f"{text}, NCCL {'.'.join(map(str, nccl.version()))}" if len(found) > 1 else text)
