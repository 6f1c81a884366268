"""What a setting is: its default, its help, what a good value is, and which kinds of input it concerns.

A setting is stated once, as a field of a frozen dataclass. The dataclass, the command line, the Python class and the
README's table all read it there. Knows nothing of what the settings do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

import numpy as np

_KEY = "option"
_MOST_SHOWN = 200  # characters of a value in a message

Number = float | str | Fraction
"""A number as its decimal digits say: a string or a Fraction may be any rational, such as ``"100/3"``."""


@dataclass(frozen=True)
class Option:
    """A setting of a conversion.

    Attributes:
        help: one or two sentences for people: what it sets, in which unit.
        parse: turn text that was typed into a value, or raise ValueError. ``bool``: a flag without a value.
        metavar: what stands for the value in the help text; several words: so many values, repeatable.
        choices: the values that it can have; empty: see `check`.
        check: whether a value is good.
        rule: what `check` demands, as the end of a sentence that begins with the setting and its value.
        kinds: the kinds of input that it concerns; empty: all.
        flag: its name on the command line, without ``--``; by default that of the field. None: Python only.
        unset: what its default means, where the value does not say it.
        rare: whether it is seldom needed: then it is in the help text, not in README's table.
    """

    help: str
    parse: Callable[[str], Any] = str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    check: Callable[[Any], bool] = lambda value: True
    rule: str = ""
    kinds: tuple[str, ...] = ()
    flag: str | None = ""
    unset: str = ""
    rare: bool = False


@dataclass(frozen=True)
class NamedOption(Option):
    """A setting with its name and its default."""

    name: str = ""
    default: Any = None

    @property
    def typed(self) -> str | None:
        """Its name on the command line, such as ``--bin-size-ms``; None where it cannot be set there."""
        return None if self.flag is None else f"--{self.flag or self.name.replace('_', '-')}"


def option(default: Any, about: Option) -> Any:
    """State a setting, as a field of a dataclass."""
    return field(default=default, metadata={_KEY: about})


def options_of(config: Any) -> Iterator[NamedOption]:
    """Yield the settings that a dataclass states, in order."""
    for each in fields(config):
        if _KEY in each.metadata:
            yield NamedOption(**vars(each.metadata[_KEY]), name=each.name, default=each.default)


def check_options(config: Any) -> None:
    """Refuse a value that cannot be.

    Raises:
        ValueError: the message begins with the setting's name.
    """
    for each in options_of(config):
        value = getattr(config, each.name)
        if each.choices and value not in each.choices:
            raise refused(config, each.name, f"must be one of {', '.join(each.choices)}")
        if not each.check(value):
            raise refused(config, each.name, each.rule)


def refused(config: Any, name: str, why: str) -> ValueError:
    """Return the error that a setting has a value that cannot be."""
    return ValueError(f"{name}={getattr(config, name)!r:.{_MOST_SHOWN}}: {why}")


def names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas."""
    return tuple(name.strip() for name in text.split(","))


def integer(text: str) -> int:
    """Parse a whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"must be a whole number, not {text!r}") from None


def positive(text: str) -> int:
    """Parse a positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"must be a positive whole number, not {text!r}")
    return int(text)


def decimal(text: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"must be a number, not {text!r}") from None


def number(text: str) -> float | Fraction:
    """Parse a number or a fraction."""
    try:
        return Fraction(text) if "/" in text else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"must be a number or a fraction such as 100/3, not {text!r}") from None


def exact(value: Number) -> Fraction:
    """Return a number exactly as its digits say.

    Raises:
        ValueError: it is not a number.
    """
    try:
        return value if isinstance(value, Fraction) else Fraction(str(value))
    except ZeroDivisionError:
        raise ValueError(f"{value!r} is not a number") from None


def is_positive(value: Number) -> bool:
    """Return whether a value is a positive finite number."""
    try:
        return exact(value) > 0
    except ValueError:
        return False


def is_whole(value: Any, least: int | None = None) -> bool:
    """Return whether a value is an integer, of at least `least`."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and (least is None or value >= least)


def as_json(value: Any) -> Any:
    """Return a setting's value as JSON has it; a Fraction becomes its string, which reads back as the same number."""
    if isinstance(value, tuple):
        return [as_json(each) for each in value]
    return str(value) if isinstance(value, Fraction) else value
