"""`strategy=auto`: the simplest strategy that fits into the workers' devices, chosen before any worker starts.

The strategy is no part of a run's recipe, and a checkpoint has one form for all of them. So a run that is continued
elsewhere, with other workers or more memory, may continue under another strategy. The choice is kept in the run's
configuration and told to the user.
"""

import subprocess
from collections.abc import Callable
from typing import Literal, TypeVar

import psutil

from orchestrator.configuration.commands import TrainingRunConfig
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.errors import ConfigError
from orchestrator.planning.advice import USABLE, chosen
from orchestrator.planning.memory import memory, needed
from orchestrator.planning.setting import setting_of

AnyRun = TypeVar("AnyRun", bound=TrainingRunConfig)


def with_strategy(config: AnyRun, vocab_size: Callable[[], int]) -> tuple[AnyRun, str | None]:
    """Return the configuration with the strategy that `auto` stands for, and a line about it; another one is kept.

    Args:
        config: The configuration with the shape of the model that is continued.
        vocab_size: Returns the number of tokens of the tokenizer, if the model's is not given.

    Raises:
        ConfigError: no strategy fits, or the memory of the workers' devices is not known.
    """
    if config.strategy.name != "auto":
        return config, None
    device = _device(config.cluster)
    setting = setting_of(config, config.model.vocab_size or vocab_size(), device)
    usable = USABLE * _device_bytes(config, device)
    name = chosen(setting, usable, _host_bytes(config, device))
    line = f"strategy=auto: {name}, the simplest that fits: {needed(memory(setting, name), setting) / 1e9:.3g} GB"
    strategy = config.strategy.model_copy(update={"name": name})
    return config.model_copy(update={"strategy": strategy}), f"{line} of {usable / 1e9:.3g} GB for a worker"


def _device(config: ClusterConfig) -> Literal["cpu", "cuda"]:
    if config.gpus_per_worker is not None:
        return "cuda" if config.gpus_per_worker else "cpu"
    if config.address is not None:
        return "cuda"
    import torch  # which only this case needs

    return "cuda" if torch.cuda.device_count() >= min(config.worker_counts) else "cpu"


def _device_bytes(config: TrainingRunConfig, device: Literal["cpu", "cuda"]) -> float:
    """Return the memory of a worker's device, or of a worker's share of this machine.

    Raises:
        ConfigError: it is another machine's.
    """
    if config.strategy.memory_gigabytes is not None:
        return 1e9 * config.strategy.memory_gigabytes
    if config.cluster.address is not None:
        raise ConfigError(
            "strategy=auto: the memory of the cluster's devices is not known here; give strategy.memory_gigabytes=VALUE"
        )
    if device == "cpu":
        return psutil.virtual_memory().available / max(config.cluster.worker_counts)
    return _smallest_gpu_bytes()


def _host_bytes(config: TrainingRunConfig, device: Literal["cpu", "cuda"]) -> float | None:
    """Return a worker's share of this machine's memory, into which offloaded state must fit; None if it is not known.

    It is not where workers may be on other machines, or where another machine's memory is given.
    """
    elsewhere = config.cluster.address is not None or config.cluster.name == "torchrun"
    if device == "cpu" or elsewhere or config.strategy.memory_gigabytes is not None:
        return None
    return USABLE * psutil.virtual_memory().available / max(config.cluster.worker_counts)


def _smallest_gpu_bytes() -> float:
    """Ask the driver's own tool, since CUDA takes memory of a GPU in every process that asks it."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        return 2**20 * min(float(line) for line in said.split("\n") if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(
            f"strategy=auto: nvidia-smi does not say how much memory the GPUs have ({error}); give "
            "strategy.memory_gigabytes=VALUE"
        ) from None
