"""What `orchestrator plan` is told beside a training's own configuration: the device, its links, price and faults."""

from typing import Annotated

from pydantic import Field

from modules.config import Config, Count, Runtime

_Rate = Annotated[float, Field(gt=0, le=1e9)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Label = Annotated[str, Field(min_length=1, max_length=64)]


class LinkConfig(Config):
    """A link between devices."""

    name: Runtime[_Label]
    """What it is called."""
    gigabytes_per_second: Runtime[_Rate]
    """What one device sends over it, in one direction, by its maker's figures; 10^9 bytes."""


class DeviceConfig(Config):
    """A kind of device, by its maker's data sheet."""

    name: Runtime[_Label]
    """What it is called."""
    is_gpu: Runtime[bool] = True
    """Whether it is a GPU; otherwise it is a processor, whose memory is the host's."""
    memory_gigabytes: Runtime[_Rate | None] = None
    """Its memory in 10^9 bytes; null is not known."""
    float32_teraflops: Runtime[_Rate | None] = None
    """Peak of matrix products in float32 without TF32, as PyTorch computes them; null is not known."""
    tf32_teraflops: Runtime[_Rate | None] = None
    """Peak of dense matrix products in TF32, for training.tf32=true; null is not known, or it has none."""
    half_teraflops: Runtime[_Rate | None] = None
    """Peak of dense matrix products in bfloat16 and float16; null is not known."""
    memory_gigabytes_per_second: Runtime[_Rate | None] = None
    """Bandwidth of its memory; null is not known."""
    matmul_efficiency: Runtime[_Share | None] = None
    """Share of the peak that matrix products reach, fitted to published runs; null is not known."""
    attention_efficiency: Runtime[_Share | None] = None
    """The same of attention, counted as if it computed all pairs of positions; null is not known."""
    per_node: Runtime[Count] = 8
    """Devices of a node."""
    link: LinkConfig | None = None
    """Between the devices of a node."""
    host_gigabytes_per_second: Runtime[_Rate | None] = None
    """To the host's memory, in one direction; null is not known."""


class PlanSettings(Config):
    """What a plan is computed with."""

    price_per_hour: Runtime[Annotated[float, Field(ge=0, le=1e9)] | None] = None
    """Price of one device for an hour, in any currency; null shows no cost."""
    utilization: Runtime[_Share | None] = None
    """Share of the device's peak (MFU) that the training reaches; null takes that of published runs, where known."""
    vocab_size: Runtime[Annotated[int, Field(gt=0, le=2**24)] | None] = None
    """Tokens of the tokenizer, where it is trained only later; null takes what the configuration says."""
    device_mtbf_hours: Runtime[_Rate] = 50_000.0
    """Mean time between the faults of one device with its share of the machine; checkpoint.mtbf_seconds goes before."""
    recovery_seconds: Runtime[_Rate] = 300.0
    """From a fault until training continues."""
    store_gigabytes_per_second: Runtime[_Rate | None] = None
    """What all workers together write to the store; null shows no time of writing."""


class PlanFields(Config):
    """What a plan is told beside the training's own configuration."""

    device: DeviceConfig | None = None
    """The device of each worker; null shows what does not depend on it."""
    link: LinkConfig | None = None
    """Between nodes."""
    plan: PlanSettings = PlanSettings()
