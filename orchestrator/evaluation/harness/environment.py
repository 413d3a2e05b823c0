"""What must be settled before lm-evaluation-harness is imported; this imports nothing of it."""

import logging
import os
from importlib.util import find_spec

from orchestrator.errors import UserError

_SETTINGS = {
    # read when `datasets` is imported: what is not on this machine fails at once instead of waiting for a network
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "DISABLE_MULTIPROC": "1",  # lm-eval forks as many processes as there are CPUs to estimate a standard error
}


def prepare_harness() -> None:
    """Have lm-eval ask no hub, start no processes and print nothing; call this before anything imports it.

    Raises:
        UserError: It is not installed.
    """
    if find_spec("lm_eval") is None:
        raise UserError("harness.tasks: lm-eval is not installed; pip install 'gpt-orchestrator[eval]'")
    os.environ.update(_SETTINGS)
    for name in ("lm_eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
