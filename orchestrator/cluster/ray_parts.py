"""Text prepared by the CPUs of a Ray cluster: each group of files is a task, whose result lies in the store."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from modules.data.parts import PartMaker
from modules.errors import InputError
from orchestrator.cluster.not_seen import no_file_seen
from orchestrator.cluster.ray_cluster import connected
from orchestrator.cluster.ray_storage import check_shared, hosts_without_file
from orchestrator.cluster.ray_token import check_secure
from orchestrator.configuration.groups import ClusterConfig
from orchestrator.errors import LostNodeError, OrchestratorError, UserError
from orchestrator.storage.access import is_local
from orchestrator.storage.input_files import find_files

_MOST_LOST = 10
"""A task whose node or process is lost this often fails: it may be what ends them, by its use of memory."""
_WAITING = 2
"""Tasks for each CPU that wait or run, so that a slow one lets no other wait; a mistake waits for all of them."""
_makers: list[PartMaker] = []
"""The one of this process, if it is a worker; it keeps the tokenizer between tasks."""


class RayCrew:
    """Answers requests by tasks."""

    def answers(self, requests: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Answer each request and give the answer back with the request's tag, in order.

        Raises:
            InputError: The text of a request cannot be used.
            LostNodeError: A task was lost with its node or process too often.
        """
        task: Any = ray.remote(num_cpus=1, max_retries=_MOST_LOST, scheduling_strategy="SPREAD")(_answer)
        most = _WAITING * max(1, int(ray.cluster_resources().get("CPU", 1)))
        pending: deque[tuple[Any, Any]] = deque()
        try:
            for request, tag in requests:
                pending.append((task.remote(request), tag))
                if len(pending) >= most:
                    yield _result(pending[0][0]), pending.popleft()[1]
            while pending:
                yield _result(pending[0][0]), pending.popleft()[1]
        except (InputError, OrchestratorError):
            # they would write parts after all are removed; ray.cancel ends this process if a task is just done (2.60)
            ray.wait([call for call, _ in pending], num_returns=len(pending))
            raise


def _answer(request: Any) -> Any:
    """Answer a request in a worker; an error that a person is to read is an answer, too."""
    if not _makers:
        _makers.append(PartMaker())
    try:
        return _makers[0](request)
    except (InputError, OrchestratorError) as error:
        return error


def _result(call: Any) -> Any:
    try:
        answer = ray.get(call)
    except RayTaskError:
        raise
    except RayError as error:
        reason = str(error).splitlines()[0]
        raise LostNodeError(
            f"a process that prepared text was lost {_MOST_LOST + 1} times ({reason}); the same command goes on with "
            "the parts that are done"
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextmanager
def ray_crew(config: ClusterConfig, root: str, paths: Sequence[str]) -> Iterator[RayCrew]:
    """Connect to a cluster, or start one here, and yield who prepares text there.

    Args:
        config: Which cluster.
        root: The storage root.
        paths: Where the files of the text are.

    Raises:
        UserError: a node of it does not see the root, or the files.
    """
    check_secure("cluster.address", config.address, config.allow_insecure, "cluster.allow_insecure")
    with connected(config):
        check_shared(root)
        for path in filter(is_local, paths):
            first = find_files([path])[0]
            if blind := hosts_without_file(Path(first.url)):
                raise UserError(no_file_seen(first.name, blind))
        yield RayCrew()
