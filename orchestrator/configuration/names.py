"""Names that become folders: of runs, pipelines and stages."""

import re
from typing import Annotated

from pydantic import AfterValidator

LONGEST_NAME = 128
"""Characters in a name in W&B, whose server refuses longer ones (wandb 0.31.0: wandb_settings.py, _validators.py)."""
PARTS_OF_A_RUN = frozenset(
    [
        "adapter",
        "base_model",
        "checkpoints",
        "events",
        "exports",
        "history",
        "lease",
        "model",
        "stacks",
        "wandb",
        "evaluations",
    ]
)
"""Folders within that of a run, which no other run may have as its own."""


def _is_folder_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError(
            "must begin with a letter or digit and hold only letters, digits, dots, dashes and underscores"
        )
    if len(value) > LONGEST_NAME:
        raise ValueError(f"has {len(value)} characters, and may have {LONGEST_NAME}")
    return value


def _is_run_name(value: str) -> str:
    """Return the name of a run, with one slash if it belongs to a pipeline."""
    pipeline, slash, name = value.partition("/")
    if not slash:
        return _is_folder_name(value)
    for part in (pipeline, name):
        _is_folder_name(part)
    if name in PARTS_OF_A_RUN:
        raise ValueError(f"must not end in /{name}, which is a folder within that of a run named {pipeline}")
    if len(value) > LONGEST_NAME:
        raise ValueError(f"has {len(value)} characters, and may have {LONGEST_NAME}")
    return value


def _is_stage_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", value):
        raise ValueError("must begin with a letter or digit and hold only letters, digits, dashes and underscores")
    return value


RunName = Annotated[str, AfterValidator(_is_run_name)]
PipelineName = Annotated[str, AfterValidator(_is_folder_name)]
StageName = Annotated[str, AfterValidator(_is_stage_name)]
"""Without a dot, since pipeline.stages.NAME.overrides=[…] is a path of fields."""
