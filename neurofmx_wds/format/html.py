"""Pieces of a page: every text is escaped, numbers are aligned.

Knows HTML; knows nothing of datasets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from ..errors import printable


def text(value: Any) -> str:
    """Return a value as escaped text; a number is grouped, None is empty.

    Example:
        >>> text("<b>"), text(1234567), text(0.123456789), text(None)
        ('&lt;b&gt;', '1,234,567', '0.12346', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return escape(f"{value:,.5g}" if isinstance(value, float) else printable(str(value), keep="\n"), quote=True)


def heading(title: str) -> str:
    """Return a heading with an anchor."""
    anchor = "".join(c if c.isalnum() else "-" for c in title.lower())
    return f'<h2 id="{escape(anchor, quote=True)}">{text(title)}</h2>'


def paragraph(content: str) -> str:
    """Return a paragraph of text."""
    return f"<p>{text(content)}</p>"


def code(content: str) -> str:
    """Return lines of code."""
    return f"<pre><code>{text(content)}</code></pre>"


def facts(pairs: Mapping[str, Any]) -> str:
    """Return names with their values."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs.items()) + "</dl>"


def items(lines: Iterable[str]) -> str:
    """Return a list of lines."""
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table, which scrolls by itself where it is wider than the page.

    Example:
        >>> table(["a", "n"], [["<x>", 1234]])
        '<div class="wide"><table><tr><th>a</th><th class="n">n</th></tr><tr><td>&lt;x&gt;</td><td class="n">1,234</td></tr></table></div>'
    """  # noqa: E501
    rows = [*rows]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float, type(None))) for row in rows) for i in range(len(header))
    ]
    style = [' class="n"' if each else "" for each in right]
    head = "".join(f"<th{style[i]}>{text(name)}</th>" for i, name in enumerate(header))
    body = "".join(
        "<tr>" + "".join(f"<td{style[i]}>{text(value)}</td>" for i, value in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'
