"""Imports what local workers need; the fork server imports this file, which is all that it can be asked for."""

import gc
import importlib

from modules.child_process import end_with_parent
from orchestrator.cluster.quick_imports import quick_imports

MODULES = (
    "orchestrator.training.train",
    "orchestrator.training.pretraining",
    "modules.pretraining",
    "torch._dynamo",
    "orchestrator.cluster.local",  # where the function of a worker is
)
"""What every worker of a pretraining uses up to its first step, so that none imports it again by itself."""

# a command that is refused meanwhile is not held up: who reads its output would wait for this process
end_with_parent()
with quick_imports():
    for name in MODULES:
        importlib.import_module(name)
end_with_parent(0)
# else the first full collection of each worker would look at all of these objects, and copy the pages that they share
gc.freeze()
