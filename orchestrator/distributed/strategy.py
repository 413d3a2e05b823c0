"""A strategy's name becomes a Lightning strategy, on CPU and on GPU.

With `training_state` the only speaker of DeepSpeed.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor

from orchestrator.configuration.groups import StrategyConfig
from orchestrator.distributed.compile_folder import prepare_to_compile
from orchestrator.distributed.runtime import Runtime

_ANY_PORT = 0
"""For a worker that meets nobody: the system gives it a free one."""


class RuntimeEnvironment(ClusterEnvironment):
    """Tells Lightning the place that the launcher gave this worker; processes are already there."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self._runtime = runtime

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return os.environ.get("MASTER_ADDR", "localhost")

    @property
    def main_port(self) -> int:
        return int(os.environ.get("MASTER_PORT", _ANY_PORT))

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._runtime.world_size

    def set_world_size(self, size: int) -> None:
        """Fixed by the launcher: Lightning's own figure (nodes x devices) is wrong on uneven nodes."""

    def global_rank(self) -> int:
        return self._runtime.rank

    def set_global_rank(self, rank: int) -> None:
        """Fixed by the launcher, as above."""

    def local_rank(self) -> int:
        return self._runtime.local_rank

    def node_rank(self) -> int:
        return self._runtime.node_rank


class _DDP(DDPStrategy):
    def __init__(self, device: torch.device, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._device = device

    @property
    def root_device(self) -> torch.device:
        return self._device


def build_strategy(config: StrategyConfig, runtime: Runtime, gradient_clip_norm: float | None) -> Strategy:
    """Return the Lightning strategy of this worker."""
    device = torch.device(runtime.device)
    if config.name == "single":
        return SingleDeviceStrategy(device)
    environment = RuntimeEnvironment(runtime)
    if config.name == "ddp":
        # one bucket view less to copy, and the graph is the same in every step of a phase
        return _DDP(device, cluster_environment=environment, gradient_as_bucket_view=True)
    # none of ours compiles anything; settings of DeepSpeed's own may (offload to NVMe, quantized weights, ZenFlow)
    prepare_to_compile(lambda text: runtime.emit({"kind": "note", "text": text}))
    return _deepspeed_strategy(config, device, environment, gradient_clip_norm)


def deepspeed_config(config: StrategyConfig, gradient_clip_norm: float | None) -> dict[str, Any]:
    """Return DeepSpeed's configuration; the user's own settings win, group by group."""
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": False}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    ours: dict[str, Any] = {
        "zero_optimization": zero,
        "gradient_clipping": gradient_clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW on the CPU needs no compiler, DeepSpeed's own does
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 1,
    }
    for key, value in config.deepspeed.items():
        both = isinstance(value, dict) and isinstance(ours.get(key), dict)
        ours[key] = {**ours[key], **value} if both else value
    return ours


def _deepspeed_strategy(
    config: StrategyConfig, device: torch.device, environment: ClusterEnvironment, gradient_clip_norm: float | None
) -> Strategy:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    from pytorch_lightning.strategies import DeepSpeedStrategy

    class _DeepSpeed(DeepSpeedStrategy):
        @property
        def root_device(self) -> torch.device:
            # the engine compares the index with 0, and a bare cpu device has none
            return torch.device(device.type, device.index or 0)

        def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # Lightning has divided by the accumulated micro-batches, and the engine would do it again
            return super().backward(closure_loss, *args, scale_wrt_gas=False, **kwargs)

        def teardown(self) -> None:
            engine: Any = self.model
            if hasattr(engine, "destroy"):  # not where the set-up has failed
                engine.destroy()
            _forget_sharded_models()
            super().teardown()

    class _CpuDeepSpeed(_DeepSpeed):
        def setup_environment(self) -> None:
            # Lightning's own version only refuses what is not CUDA
            DDPStrategy.setup_environment(self)  # type: ignore[arg-type]

        def setup_distributed(self) -> None:
            self.set_world_ranks()
            _without_compiled_collectives()
            self._init_deepspeed_distributed()

        def model_to_device(self) -> None:
            """Everything is on the CPU already."""

    settings: dict[str, Any] = {
        "config": deepspeed_config(config, gradient_clip_norm),
        "cluster_environment": environment,
        # of a skipped step we tell ourselves
        "logging_level": logging.ERROR,
    }
    if device.type == "cpu":
        return _CpuDeepSpeed(process_group_backend="gloo", **settings)
    return _DeepSpeed(**settings)


def compile_cpu_adam() -> None:
    """Compile DeepSpeed's Adam for the CPU into the folder that runs take extensions from, once.

    No strategy of ours takes it, but settings of DeepSpeed's own do (ZenFlow).
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    prepare_to_compile(print)
    from deepspeed.ops import op_builder

    builders: Any = op_builder  # it names them as it is imported
    builders.CPUAdamBuilder().load(verbose=False)


def _forget_sharded_models() -> None:
    """Let go of all models that ZeRO-3 has sharded in this process, so that another one finds memory after a rollback.

    Two registers hold them for ever (deepspeed 0.19.8): a stack that is never emptied, and the cache of a method.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    method: Any = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
    for cell in method.__closure__:
        cell.cell_contents.cache_clear()


def _without_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce.

    Only inference uses it (deepspeed 0.19.8, `comm/torch.py`, `inference_all_reduce`), it takes a minute and a C++
    compiler, and a build that is killed leaves a lock on which every later start waits for ever.
    """
    import deepspeed.ops

    ops: Any = deepspeed.ops
    ops.__compatible_ops__ = defaultdict(bool)


def gradient_norm(trainer: Trainer) -> Tensor | float | None:
    """Return the norm of the whole gradient where DeepSpeed has measured it in this step or the last, else None.

    Infinite or negative if the gradient is not finite.
    """
    return getattr(_zero_optimizer(trainer), "_global_grad_norm", None)


def guard_steps(trainer: Trainer, admits: Callable[[], bool]) -> None:
    """Let weights and moments move only where `admits` says so, asked when the gradient and its norm are known.

    ZeRO asks for each group of parameters; it does not ask where it skips a step by itself, as it does on all ranks
    alike when the gradient is not finite.
    """
    zero = _zero_optimizer(trainer)
    # the backup moves what a partly offloaded optimizer leaves on the GPU
    inner = [zero.optimizer, getattr(zero, "backup_optimizer", None)] if zero else trainer.strategy.optimizers
    for optimizer in inner:
        if optimizer is not None:
            _guard_optimizer(optimizer, admits)


def _guard_optimizer(optimizer: Any, admits: Callable[[], bool]) -> None:
    move = optimizer.step

    def step(closure: Callable[[], Any] | None = None) -> Any:
        # forward, backward and the norm of the gradient happen in Lightning's closure
        result = closure() if closure else None
        if admits():
            move()
        return result

    optimizer.step = step


def _zero_optimizer(trainer: Trainer) -> Any:
    """Return DeepSpeed's optimizer, which wraps torch's; None without DeepSpeed."""
    return getattr(trainer.strategy.model, "optimizer", None)
