"""The Lightning strategy for each strategy name, on CPU and on GPU.

Only this module, `training_state`, `whole_copy` and `zero_muon` use DeepSpeed.
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

from modules.config import OptimizerConfig, Precision
from modules.model import Block
from orchestrator.configuration.groups import StrategyConfig
from orchestrator.distributed.compile_folder import prepare_to_compile
from orchestrator.distributed.precision import deepspeed_precision
from orchestrator.distributed.runtime import Runtime
from orchestrator.distributed.zero_muon import prepare_muon
from orchestrator.planning.memory import ZERO_ON_GPU

_ANY_PORT = 0
"""For a worker without peers: the system chooses a free port."""


class RuntimeEnvironment(ClusterEnvironment):
    """Gives Lightning the position that the launcher assigned to this worker; the processes exist already."""

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
        """Ignore Lightning's own figure (nodes x devices), which is wrong on uneven nodes; the launcher's is fixed."""

    def global_rank(self) -> int:
        return self._runtime.rank

    def set_global_rank(self, rank: int) -> None:
        """Ignore Lightning's rank, as above."""

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


def build_strategy(
    config: StrategyConfig, runtime: Runtime, optimizer: OptimizerConfig, precision: Precision
) -> Strategy:
    """Return the Lightning strategy of this worker."""
    device = torch.device(runtime.device)
    if config.name == "single":
        return SingleDeviceStrategy(device)
    environment = RuntimeEnvironment(runtime)
    if config.name == "ddp":
        # gradients are views of the buckets, which saves a copy; buffers are equal on all ranks and never change
        return _DDP(device, cluster_environment=environment, gradient_as_bucket_view=True, broadcast_buffers=False)
    # our strategies compile nothing; DeepSpeed's own settings may (offload to NVMe, quantized weights, ZenFlow)
    prepare_to_compile(lambda text: runtime.emit({"kind": "note", "text": text}))
    return _deepspeed_strategy(config, device, environment, optimizer, precision)


def deepspeed_config(
    config: StrategyConfig, optimizer: OptimizerConfig, precision: Precision, device: torch.device
) -> dict[str, Any]:
    """Return DeepSpeed's configuration; the user's own settings take precedence, group by group."""
    clip_norm = None if optimizer.name == "muon" else optimizer.gradient_clip_norm  # see `zero_muon`
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": False}
    if device.type == "cuda":  # with streams to reduce gradients on while others are computed
        zero |= ZERO_ON_GPU
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    ours: dict[str, Any] = {
        "zero_optimization": zero,
        "gradient_clipping": clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,
        # torch's fused AdamW on the CPU needs no compiler, DeepSpeed's own does
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": 1,
        **deepspeed_precision(precision),
    }
    for key, value in config.deepspeed.items():
        both = isinstance(value, dict) and isinstance(ours.get(key), dict)
        ours[key] = {**ours[key], **value} if both else value
    return ours


def _deepspeed_strategy(
    config: StrategyConfig,
    device: torch.device,
    environment: ClusterEnvironment,
    optimizer: OptimizerConfig,
    precision: Precision,
) -> Strategy:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
        # otherwise ZeRO-3 starts `numactl` for every micro-batch to count devices (8 ms, deepspeed 0.19.8)
        os.environ.setdefault("LOCAL_SIZE", "1")
    from pytorch_lightning.strategies import DeepSpeedStrategy

    class _DeepSpeed(DeepSpeedStrategy):
        @property
        def root_device(self) -> torch.device:
            # the engine compares the index with 0, and a plain `cpu` device has none
            return torch.device(device.type, device.index or 0)

        def init_deepspeed(self) -> None:
            if config.zero_stage == 3:
                _gather_compiled_blocks_whole(self.model)
            super().init_deepspeed()
            _complete(self.model, config, device, optimizer, precision)

        def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # Lightning has divided by the number of accumulated micro-batches; the engine would divide again
            return super().backward(closure_loss, *args, scale_wrt_gas=False, **kwargs)

        def teardown(self) -> None:
            engine: Any = self.model
            if hasattr(engine, "destroy"):  # missing if the setup has failed
                engine.destroy()
            _release_sharded_models()
            _undo_process_wide_settings()
            super().teardown()

    class _CpuDeepSpeed(_DeepSpeed):
        def setup_environment(self) -> None:
            # Lightning's own version adds nothing but an error without CUDA
            DDPStrategy.setup_environment(self)  # type: ignore[arg-type]

        def setup_distributed(self) -> None:
            self.set_world_ranks()
            _without_compiled_collectives()
            self._init_deepspeed_distributed()

        def model_to_device(self) -> None:
            """Do nothing: everything is on the CPU already."""

    settings: dict[str, Any] = {
        "config": deepspeed_config(config, optimizer, precision, device),
        "cluster_environment": environment,
        # we report skipped steps ourselves
        "logging_level": logging.ERROR,
    }
    if device.type == "cpu":
        return _CpuDeepSpeed(process_group_backend="gloo", **settings)
    return _DeepSpeed(**settings)


def compile_cpu_adam() -> None:
    """Compile DeepSpeed's Adam for the CPU once, into the folder from which runs load extensions.

    None of our strategies uses it, but some DeepSpeed settings do (ZenFlow).
    """
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    prepare_to_compile(print)
    from deepspeed.ops import op_builder

    builders: Any = op_builder  # its builders get their names at import, so a type checker does not see them
    builders.CPUAdamBuilder().load(verbose=False)


def _release_sharded_models() -> None:
    """Release all models that ZeRO-3 has sharded in this process, so that a new one has memory after a rollback.

    Two registries hold them forever (deepspeed 0.19.8): a stack that is never emptied, and the cache of a method.
    """
    from deepspeed.runtime.zero import parameter_offload
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameter_offload.FWD_MODULE_STACK.clear()
    method: Any = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
    for cell in method.__closure__:
        cell.cell_contents.cache_clear()


def _gather_compiled_blocks_whole(model: Any) -> None:
    """Let ZeRO-3 gather the weights of a compiled block together, before it, and release them after it.

    It gathers those of each layer in hooks of that layer, which would cut what is compiled into one graph for each
    (deepspeed 0.19.8).
    """
    from deepspeed.utils import set_z3_leaf_module

    for block in model.modules():
        if isinstance(block, Block) and block.compiled is not None:
            set_z3_leaf_module(block, True)


def _complete(
    engine: Any, config: StrategyConfig, device: torch.device, optimizer: OptimizerConfig, precision: Precision
) -> None:
    """Give DeepSpeed's engine what it lacks for float16 and for Muon."""
    if precision == "16":
        _scale_loss(engine)
    if optimizer.name == "muon":
        prepare_muon(engine.optimizer, config.zero_stage, device, optimizer.gradient_clip_norm)


def _scale_loss(engine: Any) -> None:
    """Scale the loss of a float32 engine, as DeepSpeed does for float16 weights.

    For float16 autocast it creates torch's scaler instead, which clips before it unscales, and which lets each rank
    skip a step by its own part of the gradient (deepspeed 0.19.8).
    """
    from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler

    zero = engine.optimizer
    zero.torch_autocast_gradscaler = None
    zero.loss_scaler = CreateLossScaler(
        torch.float16, engine.loss_scale(), engine.dynamic_loss_scale(), engine.dynamic_loss_scale_args()
    )
    zero.dynamic_loss_scale = zero.loss_scaler.dynamic


def _undo_process_wide_settings() -> None:
    """Undo what DeepSpeed has set for the whole process, so that the next fit in it computes what it should."""
    from deepspeed.runtime import torch_autocast
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses

    torch_autocast.TORCH_AUTOCAST_INITIALIZED, torch_autocast.TORCH_AUTOCAST_DTYPE = False, None
    torch.nn.functional.linear = getattr(
        InsertPostInitMethodToModuleSubClasses, "linear_bk", torch.nn.functional.linear
    )


def _without_compiled_collectives() -> None:
    """Keep DeepSpeed from compiling its shared-memory all-reduce.

    Only inference uses it (deepspeed 0.19.8, `comm/torch.py`, `inference_all_reduce`). Compiling it takes a
    minute and a C++ compiler, and a killed build leaves a lock for which every later start waits forever.
    """
    import deepspeed.ops

    ops: Any = deepspeed.ops
    ops.__compatible_ops__ = defaultdict(bool)


def gradient_norm(trainer: Trainer) -> Tensor | float | None:
    """Return the norm of the whole gradient if DeepSpeed measured it in this step or the last, else None.

    It is infinite or no number if the gradient is not finite.
    """
    norm = getattr(_zero_optimizer(trainer), "_global_grad_norm", None)
    # DeepSpeed reports -1 then, and tensors or floats
    return norm if norm is None else torch.where(torch.as_tensor(norm) < 0, torch.inf, norm)


def guard_steps(trainer: Trainer, is_bad: Callable[[], Tensor | bool], on_device: bool) -> list[str]:
    """Update weights and moments only if not `is_bad()`; it is called when the gradient and its norm are known.

    With ZeRO it is called for each group of parameters, but not if ZeRO skips a step by itself, as it does on all
    ranks when the gradient is not finite.

    Args:
        is_bad: Returns whether the step must be skipped, bool [] on the device if `on_device`.
        on_device: Leave the decision to the optimizer's kernels where it has such, and they run where the verdict is;
            else this process waits for it, as it does for the gradients of weights that are updated in its memory.

    Returns:
        The optimizers, by class, that have no such kernels although `on_device` asks for them.
    """
    zero = _zero_optimizer(trainer)
    # the backup updates the part that a partly offloaded optimizer leaves on the GPU
    inner = [zero.optimizer, getattr(zero, "backup_optimizer", None)] if zero else trainer.strategy.optimizers
    optimizers = [optimizer for optimizer in inner if optimizer is not None]
    for optimizer in optimizers:
        _guard_optimizer(optimizer, is_bad, on_device and _takes_found_inf(optimizer))
    waiting = {type(optimizer).__name__ for optimizer in optimizers if on_device and not _takes_found_inf(optimizer)}
    return sorted(waiting)


def _takes_found_inf(optimizer: Any) -> bool:
    """Return whether it skips a step by `found_inf`, as torch's fused ones do for their gradient scaler."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def _guard_optimizer(optimizer: Any, is_bad: Callable[[], Tensor | bool], on_device: bool) -> None:
    update = optimizer.step

    def step(closure: Callable[[], Any] | None = None) -> Any:
        # Lightning's closure runs forward and backward, and computes the norm of the gradient
        result = closure() if closure else None
        verdict = is_bad()
        if on_device and isinstance(verdict, Tensor) and verdict.device == _device_of_weights(optimizer):
            _update_unless(verdict, optimizer, update)
        elif not verdict:
            update()
        return result

    optimizer.step = step


def _device_of_weights(optimizer: Any) -> torch.device | None:
    """Return where its kernels run; None without weights.

    torch copies a `found_inf` from elsewhere without a wait (2.13.0), so that a step of weights in this process's
    memory would be counted by whatever the copy's memory held before.
    """
    # ZeRO-3 empties each group but the one that it updates
    return next((weight.device for group in optimizer.param_groups for weight in group["params"]), None)


def _update_unless(is_bad: Tensor, optimizer: Any, update: Callable[[], Any]) -> None:
    scalers = getattr(optimizer, "found_inf", None)  # set by torch's gradient scaler for this step
    optimizer.found_inf = is_bad.float() if scalers is None else torch.maximum(is_bad.float(), scalers)
    try:
        update()
    finally:
        if scalers is None:
            del optimizer.found_inf
        else:
            optimizer.found_inf = scalers


def _zero_optimizer(trainer: Trainer) -> Any:
    """Return DeepSpeed's optimizer, which wraps torch's; None without DeepSpeed."""
    return getattr(trainer.strategy.model, "optimizer", None)
