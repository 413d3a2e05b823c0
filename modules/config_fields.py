"""What every configuration class is made of: the roles of fields, bounded types, and rules for every value."""

import math
import re
from collections.abc import Iterator
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator


class Role(Enum):
    """How a field relates to the output of a command."""

    IDENTITY = "identity"
    RUNTIME = "runtime"
    INPUT = "input"
    LATER = "later identity"


T = TypeVar("T")
Identity = Annotated[T, Role.IDENTITY]
"""Decides the output, and is part of the recipe."""
LaterIdentity = Annotated[T, Role.LATER]
"""As `Identity`, for a field younger than some runs: at its default it is left out, so recipes stay what they were."""
Runtime = Annotated[T, Role.RUNTIME]
"""Decides where and how the output is made, what is shown or what is kept; not part of the recipe."""
Input = Annotated[T, Role.INPUT]
"""Path of an input. The identity of its content is part of the recipe, the path is not."""
DERIVED = "derived"
Derived = Annotated[T, DERIVED]
"""A group that a command sets by itself; no field of the user, so help and `conf/` leave it out."""

# Every number has an upper bound, far above what anybody needs: what computes with it neither overflows nor loops.
MOST_STEPS, MOST_SEQUENCES = 10**10, 2**28
"""Their product numbers every sample of a run in 63 bits."""
Count = Annotated[int, Field(gt=0, le=10**9)]
CountOrZero = Annotated[int, Field(ge=0, le=10**9)]
Steps = Annotated[int, Field(gt=0, le=MOST_STEPS)]
Sequences = Annotated[int, Field(gt=0, le=MOST_SEQUENCES)]
Width = Annotated[int, Field(gt=0, le=2**20)]
Length = Annotated[int, Field(gt=0, le=2**27)]
NumBytes = Annotated[int, Field(gt=0, le=2**60)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]
"""A timer takes no more than 292 years."""
Factor = Annotated[float, Field(ge=0, le=1e6)]
Small = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
ActivationCheckpointing = Literal["none", "blocks", "selective"]
HeadLoss = Literal["eager", "compiled"]
Precision = Annotated[Literal["32", "bf16", "16", "bf16-true", "16-true"], BeforeValidator(str)]
ObjectiveName = Literal["clm", "mlm"]
SourceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
"""It becomes part of the names of metrics."""


def as_tuple(value: Any) -> Any:
    """Return a single text as a tuple of it, so that a list of one needs no brackets."""
    return (value,) if isinstance(value, str) else value


def _as_one_character(value: Any) -> Any:
    r"""Return the character that `value` names; in the shell a tab is easiest written as \t."""
    text = {"\\t": "\t", "tab": "\t"}.get(value, value) if isinstance(value, str) else value
    if isinstance(text, str) and (len(text) != 1 or text in '"\r\n'):
        raise ValueError("must be one character other than a quote or a line end, as ';' '|' or '\\t' for a tab")
    return text


Paths = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Delimiter = Annotated[str, BeforeValidator(_as_one_character)]


_HALF_PAIR = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: Python keeps a byte of the command line that is not UTF-8 as one."""


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_in(item)


class Config(BaseModel):
    """A validated, immutable part of the configuration: unknown keys are mistakes."""

    # a validator is built when it is first used: most processes validate one class of eighty, or none
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _a_flag_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if _holds_flag(value) and _takes_numbers_alone(cls, str(info.field_name)):
            raise ValueError("must be a number, and true and false are none")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _text_is_unicode(cls, value: Any) -> Any:
        for text in _texts_in(value):
            if odd := _HALF_PAIR.search(text):
                raise ValueError(
                    f"character {odd.start() + 1} is not UTF-8 (a file of such a name is found by its folder or a glob)"
                )
        return value


def holds_groups(value: Any) -> bool:
    """Return whether the value of a field is a list of groups of fields."""
    return isinstance(value, tuple) and bool(value) and all(isinstance(item, Config) for item in value)


def divisors(number: int) -> list[int]:
    """Return every divisor of a positive number, in ascending order, without counting up to it."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _holds_flag(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, bool) or any(map(_holds_flag, items))


def _takes_numbers_alone(kind: type[BaseModel], field: str) -> bool:
    types = _types_in(kind.model_fields[field].annotation)
    return bool(types & {int, float}) and bool not in types


def _types_in(annotation: Any) -> set[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        return {annotation}
    return {found for part in get_args(annotation) for found in _types_in(part)}
