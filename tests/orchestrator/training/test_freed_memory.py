"""Freed memory is used again without a page fault."""

import os
import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
import ctypes
from orchestrator.training.freed_memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def step():
    blocks = [libc.malloc(2**24) for _ in range(4)]
    for block in blocks:
        libc.memset(block, 1, 2**24)
    for block in blocks:
        libc.free(block)

keep_freed_memory()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
@pytest.mark.parametrize(("settings", "keeps"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_a_step_takes_its_memory_from_the_last_one_unless_the_user_has_settings(
    settings: dict[str, str], keeps: bool
) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env={**clean, **settings}, stdout=subprocess.PIPE, check=True
    )
    num_pages = 4 * 2**24 // 4096
    assert (int(done.stdout) < num_pages / 100) == keeps
