"""The precisions in which a processor is measured."""

import sys

from modules.processor import bfloat16_instructions


def measured_precisions() -> tuple[str, ...]:
    """Return "32" and, where the processor multiplies such matrices, "bf16"; emulated, that would say nothing."""
    if bfloat16_instructions():
        return "32", "bf16"
    print("this processor emulates bfloat16: nothing is measured in it", file=sys.stderr, flush=True)
    return ("32",)
