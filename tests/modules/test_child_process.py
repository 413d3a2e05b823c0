"""A child ends with its parent while it asks for that, and only then."""

import subprocess
import sys

import pytest

_CHILD = """
import os, sys, time
from modules.child_process import end_with_parent
parent = os.getppid()
end_with_parent()
{then}
print("asked", file=sys.stderr, flush=True)
while os.getppid() == parent:
    time.sleep(0.01)
print("lives", flush=True)
"""
_PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stderr=subprocess.PIPE)
child.stderr.readline()  # it has asked
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
@pytest.mark.parametrize(("then", "expected"), [("", ""), ("end_with_parent(0)", "lives\n")])
def test_a_child_ends_with_its_parent_while_it_asks_for_that(then: str, expected: str) -> None:
    command = [sys.executable, "-c", _PARENT, _CHILD.format(then=then)]
    # what the parent writes to is open until the child has ended, too
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout == expected
