"""Rows of a table chosen by an expression over its columns, such as ``quality == "good" and location == "CA1"``.

Knows text and columns; knows nothing of files. Nothing of an expression is ever run: its syntax tree is walked.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import SourceError, available_hint

MOST_CHARACTERS, MOST_DEPTH = 10_000, 50
_QUOTED = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`([^`]*)`""")
_ORDERED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip
_EQUAL, _MEMBER = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot), (ast.In, ast.NotIn)
_SUMMARY = 'write comparisons of columns with values, joined by and, or, not: quality == "good" and n_spikes > 100'


class Choice:
    """An expression over the columns of a table.

    It may compare columns with text, numbers, True, False, None and lists of these (``==``, ``!=``, ``<``, ``<=``,
    ``>``, ``>=``, ``in``, ``not in``), join comparisons with ``and``, ``or``, ``not``, and name a column of true and
    false alone. A name with spaces stands in backticks. A missing value (None) is equal to None only, and is neither
    less nor greater than anything.

    Args:
        text: the expression.

    Raises:
        ValueError: it is no such expression; the message says what is wrong with it.

    Example:
        >>> table = {"quality": ["good", "mua", "good"], "depth (um)": [120.0, 80.0, None]}
        >>> Choice('quality == "good" and `depth (um)` > 100').rows(table).tolist()
        [True, False, False]
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if not isinstance(text, str) or not text.strip():
            raise ValueError(_SUMMARY)
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"must have at most {MOST_CHARACTERS} characters")
        self._names: dict[str, str] = {}
        _check(self._tree)

    @cached_property
    def _tree(self) -> ast.expr:
        try:
            return ast.parse(_QUOTED.sub(self._renamed, self.text).strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"cannot be read ({getattr(error, 'msg', error)}): {_SUMMARY}") from None

    def _renamed(self, found: re.Match[str]) -> str:
        """Return a Python name that stands for a name in backticks; text in quotes stays."""
        if found[1] is not None:
            return found[1]
        name = f"_column_{len(self._names)}_"
        self._names[name] = found[2]
        return name

    @property
    def columns(self) -> list[str]:
        """The columns that it names."""
        nodes = (node for node in ast.walk(self._tree) if isinstance(node, ast.Name))
        return list(dict.fromkeys(self._names.get(node.id, node.id) for node in nodes))

    def rows(self, table: Mapping[str, Sequence[Any]]) -> npt.NDArray[np.bool_]:
        """Return which rows fulfil it: bool (n,).

        Args:
            table: column → its value in each row.

        Raises:
            ValueError: the table has no such column, or values that cannot be compared.
        """
        for name in self.columns:
            if name not in table:
                hint = available_hint(sorted(table), name)
                raise ValueError(f"there is no column {name!r} to choose by (text stands in quotes); {hint}")
        n = len(next(iter(table.values()), ()))
        named = {name: table[self._names.get(name, name)] for name in self._variables}
        return np.array([self._holds(self._tree, {k: v[i] for k, v in named.items()}) for i in range(n)], dtype=bool)

    @cached_property
    def _variables(self) -> list[str]:
        return list({node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)})

    def _holds(self, node: ast.expr, row: Mapping[str, Any]) -> bool:
        if isinstance(node, ast.BoolOp):
            results = (self._holds(each, row) for each in node.values)
            return all(results) if isinstance(node.op, ast.And) else any(results)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._holds(node.operand, row)
        if isinstance(node, ast.Compare):
            values = [_value(each, row) for each in (node.left, *node.comparators)]
            pairs = zip(node.ops, values, values[1:], strict=False)
            return all(self._compared(how, left, right) for how, left, right in pairs)
        value = _value(node, row)
        if isinstance(value, str):
            raise ValueError(f"{self._shown(node)} holds text such as {value!r:.40}: compare it with something")
        return bool(value)

    def _compared(self, how: ast.cmpop, left: Any, right: Any) -> bool:
        if isinstance(how, _EQUAL):
            return (left == right) == isinstance(how, (ast.Eq, ast.Is))
        try:
            if isinstance(how, _MEMBER):
                return (left is not None and right is not None and left in right) == isinstance(how, ast.In)
            return left is not None and right is not None and bool(_ORDERED[type(how)](left, right))
        except TypeError:
            raise ValueError(f"{left!r:.40} cannot be compared with {right!r:.40} in {self.text!r:.100}") from None

    def _shown(self, node: ast.expr) -> str:
        return repr(self._names.get(node.id, node.id)) if isinstance(node, ast.Name) else "it"


def rows_fulfilling(choice: Choice, table: Mapping[str, Sequence[Any]], what: str, file: str) -> list[int]:
    """Return the rows of a recording's table that fulfil an expression.

    Args:
        choice: the expression.
        table: column → its value in each row.
        what: what the rows are, and the name of the option.
        file: the recording, for errors.

    Raises:
        SourceError: the table lacks a column, or its values cannot be compared.
    """
    try:
        rows: list[int] = np.flatnonzero(choice.rows(table)).tolist()
        return rows
    except ValueError as error:
        raise SourceError(str(error), file=file, remedy=f"change {what}={choice.text!r}") from None


def _value(node: ast.expr, row: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return row[node.id]
    return ast.literal_eval(node)


def _check(tree: ast.expr) -> None:
    """Refuse everything but comparisons, and, or, not, names and literals.

    Raises:
        ValueError: saying what is not allowed.
    """
    pending: list[tuple[ast.expr, int]] = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > MOST_DEPTH:
            raise ValueError(f"must not be nested deeper than {MOST_DEPTH}")
        if isinstance(node, ast.BoolOp):
            pending += [(each, depth + 1) for each in node.values]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            pending.append((node.operand, depth + 1))
        elif not all(isinstance(each, ast.Name) or _is_literal(each) for each in _compared(node)):
            raise ValueError(f"only comparisons of columns with values are allowed: {_SUMMARY}")
    if not any(isinstance(node, ast.Name) for node in ast.walk(tree)):
        raise ValueError(f"names no column: {_SUMMARY}")


def _compared(node: ast.expr) -> list[ast.expr]:
    """Return what a comparison compares; of anything else, itself."""
    return [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node]


def _is_literal(node: ast.expr) -> bool:
    return all(map(_is_single, node.elts)) if isinstance(node, (ast.List, ast.Tuple, ast.Set)) else _is_single(node)


def _is_single(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return isinstance(node.operand, ast.Constant) and type(node.operand.value) in (int, float)
    return isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, type(None)))
