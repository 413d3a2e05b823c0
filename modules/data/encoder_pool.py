"""Tokenising in several processes: bounded memory, kept order, no process left behind."""

import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import BinaryIO, Self, TypeVar, cast

import numpy as np

from modules.child_process import child_environment
from modules.data.encoder_process import read_frame, write_frame
from modules.data.encoding import Encoded, Passage, TextEncoder

Tag = TypeVar("Tag")


class EncoderPool:
    """Tokenises batches of passages in `num_processes` processes; with one, in this process.

    The processes are fresh interpreters on two pipes, not forks (torch may have started threads here) and not
    `multiprocessing`'s (which imports the caller's main module and may not be used in its own daemons, such as workers
    of Ray). They end when their pipe closes, so also when this process is killed.
    """

    BATCHES_IN_FLIGHT = 2
    """Batches a process that wait or are worked on: bounds memory."""

    def __init__(self, tokenizer_path: Path, dtype: np.dtype, num_processes: int):
        self._path = tokenizer_path
        self._dtype = dtype
        self._num_processes = num_processes
        self._processes: list[subprocess.Popen] = []
        self._idle: SimpleQueue[subprocess.Popen] = SimpleQueue()
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="tokenise")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()

    def encode(self, batches: Iterable[tuple[list[Passage], Tag]]) -> Iterator[tuple[Encoded, Tag]]:
        """Tokenises each batch of passages and gives it back with its tag, in order.

        Raises:
            CannotEncodeError: A text holds what the tokenizer has no token for.
            RuntimeError: A tokenising process died.
        """
        if self._num_processes == 1:
            yield from self._encode_here(batches)
            return
        pending: deque[tuple[Future[Encoded], Tag]] = deque()
        for passages, tag in batches:
            if len(self._processes) < min(self._num_processes, len(pending) + 1):
                self._start()
            pending.append((self._threads.submit(self._encode_there, passages), tag))
            if len(pending) > self.BATCHES_IN_FLIGHT * self._num_processes:
                future, first_tag = pending.popleft()
                yield future.result(), first_tag
        for future, tag in pending:
            yield future.result(), tag

    def _encode_here(self, batches: Iterable[tuple[list[Passage], Tag]]) -> Iterator[tuple[Encoded, Tag]]:
        encoder = TextEncoder(self._path.read_text(encoding="utf-8"), self._dtype)
        for passages, tag in batches:
            yield encoder.encode(passages), tag

    def _encode_there(self, passages: list[Passage]) -> Encoded:
        process = self._idle.get()
        try:
            return self._ask(process, passages)
        finally:
            self._idle.put(process)

    def _ask(self, process: subprocess.Popen, passages: list[Passage]) -> Encoded:
        try:
            write_frame(cast(BinaryIO, process.stdin), passages)
            reply = read_frame(cast(BinaryIO, process.stdout))
        except BrokenPipeError:
            reply = None
        if reply is None:
            raise RuntimeError(
                f"tokenising process {process.pid} ended with code {process.wait()}; "
                "if the system killed it for memory, lower data.num_processes"
            )
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _start(self) -> None:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from modules.data.encoder_process import main; main()",
                str(self._path),
                self._dtype.name,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(TOKENIZERS_PARALLELISM="false"),
            start_new_session=True,  # Ctrl-C is for this process alone, which then ends them
        )
        self._processes.append(process)
        self._idle.put(process)
