"""Where a copy of nanoGPT lies, with which some benchmarks compare: in the folder that the variable NANOGPT names.

It has no package: `git clone https://github.com/karpathy/nanoGPT`.
"""

import importlib.util
import os
from pathlib import Path
from types import ModuleType


def nanogpt_folder() -> Path:
    """Return the folder of nanoGPT; raises `FileNotFoundError` where the variable names none."""
    folder = Path(os.environ.get("NANOGPT", ""))
    if not (folder / "train.py").is_file():
        raise FileNotFoundError("NANOGPT names no copy of karpathy/nanoGPT, so nothing was compared with it")
    return folder.resolve()


def nanogpt_model() -> ModuleType:
    """Return its module `model`."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", nanogpt_folder() / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
