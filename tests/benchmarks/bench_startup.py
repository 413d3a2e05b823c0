"""Seconds from a command to its first finished training step, two workers on CPU, beside bare torchrun and Ray Train.

Ours is `orchestrator pretrain` on text that is prepared already; its time ends when its line about step 1 arrives here.
The peers are the least that does as much: gloo, DDP and one step of an equally large plain model on random tokens,
started by torchrun or by Ray Train as both are when nothing is set; torchrun also with what a worker of ours imports
(Lightning and more), which is most of its time. A peer prints when its step was finished, so that it does not pay for
the way of its line: Ray carries what a worker prints to the driver with some delay.

Run: python tests/benchmarks/bench_startup.py
"""

import importlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

Row = tuple[str, float, float, float]
"""What was measured (name and unit), ours, the peer's, ours / peer's."""
REPEATS = 3
NUM_WORKERS = 2
VOCAB_SIZE, WIDTH, NUM_HEADS, NUM_LAYERS, LENGTH, BATCH_SIZE = 320, 128, 4, 4, 64, 8
"""The model is `model=tiny` with the byte tokenizer; the batch is that of all workers."""
TRAINING = [
    *("model=tiny", "strategy=ddp", "tracking=disabled"),
    *(f"cluster.num_workers={NUM_WORKERS}", "cluster.gpus_per_worker=0"),
    *(f"training.sequence_length={LENGTH}", f"training.global_batch_size={BATCH_SIZE}"),
    *("training.num_steps=1000000", "training.log_interval_steps=1"),
]
FIRST_STEP = re.compile(r"\bstep +1(/| finished at (?P<when>[0-9.]+))")
SAME_IMPORTS, WORKER = "torchrun with the same imports", "orchestrator.training.train"
TIME_TO_START_SECONDS, TIME_TO_END_SECONDS = 300, 60


def main() -> list[Row]:
    """Medians in seconds; ours and the peers take turns."""
    with tempfile.TemporaryDirectory(prefix="bench-startup-") as folder:
        prepare(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in commands("", 0)}
        for repeat in range(REPEATS):
            for name, times in seconds.items() if repeat % 2 else reversed(seconds.items()):
                times.append(seconds_to_first_step(commands(name, repeat)[name], Path(folder)))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        (f"start to first step, cluster={cluster}, beside {peer} (s)", ours, theirs, ours / theirs)
        for cluster, peer in (("local", "torchrun"), ("local", SAME_IMPORTS), ("ray", "Ray Train"))
        for ours, theirs in [(medians[cluster], medians[peer])]
    ]


def commands(run_name: str, repeat: int) -> dict[str, list[str]]:
    """The five commands by name; a run of its own for each repeat, or ours would continue."""
    ours = [*orchestrator("pretrain"), f"run.name={run_name}-{repeat}", *TRAINING]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_WORKERS}"]
    return {
        "local": [*ours, "cluster=local"],
        "torchrun": [sys.executable, *torchrun, __file__, "torchrun"],
        SAME_IMPORTS: [sys.executable, *torchrun, __file__, "torchrun", WORKER],
        "ray": [*ours, "cluster=ray"],
        "Ray Train": [sys.executable, __file__, "ray"],
    }


def orchestrator(command: str) -> list[str]:
    """A command of ours with the settings of the data, which must be equal for it to be found prepared."""
    settings = ["data=files", "data.path=text.txt", "data.split=position", "data.val_fraction=0.1", "tokenizer=byte"]
    return [sys.executable, "-m", "orchestrator", command, *settings]


def prepare(folder: Path) -> None:
    """Write some text and prepare it."""
    (folder / "text.txt").write_text("the quick brown fox jumps over a lazy dog\n" * 5000)
    subprocess.run(orchestrator("prepare"), cwd=folder, stdout=subprocess.PIPE, check=True)


def seconds_to_first_step(command: Sequence[str], folder: Path) -> float:
    """Start `command`, wait for its first step, and end it."""
    with started(command, folder) as (process, start):
        lines = []
        assert process.stdout is not None
        for line in process.stdout:
            if found := FIRST_STEP.search(line):
                return float(found["when"] or time.time()) - start
            lines.append(line)
    raise RuntimeError(f"{' '.join(command)}: ended without a step:\n{''.join(lines[-30:])}")


@contextmanager
def started(command: Sequence[str], folder: Path) -> Iterator[tuple[subprocess.Popen[str], float]]:
    """A process in a group of its own, and when it started; after that it is asked to end, and made to."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
    start = time.time()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    watchdog = threading.Timer(TIME_TO_START_SECONDS, _kill_group, [process])
    watchdog.start()
    try:
        yield process, start
    finally:
        watchdog.cancel()
        # only the parent: it knows how to end its workers, and Ray's own processes must outlive it a moment
        process.terminate()
        try:
            process.communicate(timeout=TIME_TO_END_SECONDS)
        except subprocess.TimeoutExpired:
            _kill_group(process)
            process.communicate()


def _kill_group(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def peer_step() -> None:
    """What every worker of a peer does: one step of DDP, of which rank 0 tells."""
    import torch
    import torch.distributed
    import torch.nn.functional as F
    from torch import nn

    torch.set_num_threads(1)
    block = nn.TransformerEncoderLayer(WIDTH, NUM_HEADS, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
    blocks = nn.TransformerEncoder(block, NUM_LAYERS, enable_nested_tensor=False)
    plain = nn.Sequential(nn.Embedding(VOCAB_SIZE, WIDTH), blocks, nn.Linear(WIDTH, VOCAB_SIZE))
    model = nn.parallel.DistributedDataParallel(plain)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, VOCAB_SIZE, (BATCH_SIZE // NUM_WORKERS, LENGTH + 1))
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    optimizer.step()
    if torch.distributed.get_rank() == 0:
        print(f"step 1 finished at {time.time()}", flush=True)
    time.sleep(TIME_TO_END_SECONDS)


def run_torchrun_peer() -> None:
    """One of torchrun's workers."""
    import torch.distributed

    torch.distributed.init_process_group("gloo")
    peer_step()


def run_ray_peer() -> None:
    """The driver of a bare Ray Train; Ray starts itself."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    TorchTrainer(
        peer_step, torch_config=TorchConfig(backend="gloo"), scaling_config=ScalingConfig(num_workers=NUM_WORKERS)
    ).fit()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        for module in sys.argv[2:]:
            importlib.import_module(module)
        {"torchrun": run_torchrun_peer, "ray": run_ray_peer}[sys.argv[1]]()
    else:
        for row in main():
            print("{:72s} {:10.1f} {:10.1f} {:8.2f}".format(*row))
