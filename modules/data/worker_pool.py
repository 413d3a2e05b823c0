"""Work in several processes: bounded memory, kept order, no process left behind."""

import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar, cast

from modules.child_process import child_environment
from modules.data.worker_process import read_frame, write_frame

Tag = TypeVar("Tag")


class WorkerPool:
    """Answers requests in `num_processes` processes; with one, in this process.

    The processes are fresh interpreters on two pipes, not forks (torch may have started threads here) and not
    `multiprocessing`'s (which imports the caller's main module and may not be used in its own daemons, such as workers
    of Ray). They end when their pipe closes, so also when this process is killed.
    """

    REQUESTS_IN_FLIGHT = 2
    """Requests a process that wait or are worked on: bounds memory."""

    def __init__(
        self, program: str, arguments: Sequence[str], here: Callable[[], Callable[[Any], Any]], num_processes: int
    ):
        """Start nothing yet.

        Args:
            program: Python that serves requests, given the arguments on the command line.
            arguments: Anybody who lists processes sees them.
            here: Makes what answers requests in this process.
            num_processes: Processes to use.
        """
        self._command = [sys.executable, "-c", program, *arguments]
        self._here = here
        self._num_processes = num_processes
        self._processes: list[subprocess.Popen] = []
        self._idle: SimpleQueue[subprocess.Popen] = SimpleQueue()
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="text-worker")

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

    def answers(self, requests: Iterable[tuple[Any, Tag]]) -> Iterator[tuple[Any, Tag]]:
        """Answer each request and give the answer back with the request's tag, in order.

        Raises:
            InputError: The text of a request cannot be used.
            RuntimeError: A process died.
        """
        if self._num_processes == 1:
            work = self._here()
            yield from ((work(request), tag) for request, tag in requests)
            return
        pending: deque[tuple[Future[Any], Tag]] = deque()
        for request, tag in requests:
            if len(self._processes) < min(self._num_processes, len(pending) + 1):
                self._start()
            pending.append((self._threads.submit(self._answer_there, request), tag))
            if len(pending) > self.REQUESTS_IN_FLIGHT * self._num_processes:
                future, first_tag = pending.popleft()
                yield future.result(), first_tag
        for future, tag in pending:
            yield future.result(), tag

    def _answer_there(self, request: Any) -> Any:
        process = self._idle.get()
        try:
            return self._ask(process, request)
        finally:
            self._idle.put(process)

    def _ask(self, process: subprocess.Popen, request: Any) -> Any:
        try:
            write_frame(cast(BinaryIO, process.stdin), request)
            reply = read_frame(cast(BinaryIO, process.stdout))
        except BrokenPipeError:
            reply = None
        if reply is None:
            raise RuntimeError(
                f"process {process.pid}, which works on the text, ended with code {process.wait()}; "
                "if the system killed it for memory, lower data.num_processes"
            )
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _start(self) -> None:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(TOKENIZERS_PARALLELISM="false"),
            start_new_session=True,  # Ctrl-C is for this process alone, which then ends them
        )
        self._processes.append(process)
        self._idle.put(process)
