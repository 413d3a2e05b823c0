"""What a tokenising process does: reads passages on one pipe, writes their tokens on the other."""

import sys
from pathlib import Path

import numpy as np

from modules.data.encoding import TextEncoder
from modules.data.worker_process import serve


def main() -> None:
    """Serve until the other side closes the pipe.

    Arguments on the command line: path of the tokenizer.json, name of the tokens' dtype.
    """
    serve(TextEncoder(Path(sys.argv[1]).read_text(encoding="utf-8"), np.dtype(sys.argv[2])).encode)
