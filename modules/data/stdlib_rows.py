"""Rows that every machine has: the functions of Python's standard library, each labelled with its package."""

import ast
import textwrap
from collections.abc import Iterator
from typing import Any

import xxhash

from modules.data.source_files import SourceFile
from modules.data.stdlib import LocalFile, stdlib_files

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "urllib", "xml")
"""Those with most functions that no distribution of Python leaves out."""
_FEWEST_LINES = 4
_SHARES = (("test", 0.1), ("val", 0.2), ("train", 1.0))
"""Splits, each with the share of the rows that it and those before it have."""


def stdlib_row_files(root: str | None = None) -> list[LocalFile]:
    """Return the source files of the packages, sorted by name.

    Args:
        root: Another folder to look in.
    """
    files = (file for file in stdlib_files(root) if file.name.endswith(".py") and "/test" not in file.name)
    return [file for file in files if _package(file.name) in PACKAGES]


def stdlib_rows(file: SourceFile) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the functions of a file and where they are: `text`, `label` (the package) and `split`.

    The split is drawn by a hash of the text, so that equal functions stay together.
    """
    with file.open() as stream:
        source = stream.read().decode()
    lines = source.splitlines()
    for function in _functions(ast.parse(source)):
        text = textwrap.dedent("\n".join(lines[function.lineno - 1 : function.end_lineno]))
        if text.count("\n") + 1 >= _FEWEST_LINES:
            values = {"text": text, "label": _package(file.name), "split": _split(text)}
            yield values, f"{file.name}:{function.lineno}"


def _package(name: str) -> str:
    return name.partition("/")[0]


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the functions and methods of a module, without those that are inside another."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        else:
            yield from _functions(node)


def _split(text: str) -> str:
    drawn = xxhash.xxh3_64_intdigest(text.encode()) / 2**64
    return next(split for split, share in _SHARES if drawn < share)
