"""How much work and memory the bytes of one member may cost, in proportion to how many they are.

Knows nothing of any format.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from ..errors import UnsafeDataError

Buffer = bytes | bytearray | memoryview

_GROWTH = 100  # a compressed payload may grow so many times
_SMALL = 64 << 20  # or to so many bytes, whatever its size
_DEEPEST = 100
_PLAIN = frozenset({str, bytes, bytearray, int, float, complex, bool, type(None)})


def most_unpacked(n_bytes: int) -> int:
    """Return the most bytes that `n_bytes` of a compressed or sparse file may become: 100 times as many, or 64 MiB.

    Example:
        >>> most_unpacked(1_000) == 64 << 20, most_unpacked(10_000_000)
        (True, 1000000000)
    """
    return max(_SMALL, _GROWTH * n_bytes)


class Budget:
    """What one payload may still cost while it is decoded.

    Args:
        n_bytes: size of the payload in bytes.

    Attributes:
        left: steps of work, or bytes made, that are left.
        repeats_left: bytes left that arrays may have which only repeat other bytes.
        most_values: values that there may be, each counted as often as it occurs.
    """

    def __init__(self, n_bytes: int) -> None:
        self.left = 8 * n_bytes + (64 << 10)
        self.repeats_left = most_unpacked(n_bytes)
        self.most_values = _GROWTH * (n_bytes + 1000)

    def spend(self, amount: int) -> None:
        """Take `amount` off what is left.

        Raises:
            UnsafeDataError: it is more than what is left.
        """
        self.left -= amount
        if self.left < 0:
            raise UnsafeDataError("it asks for far more work or memory than its size allows")

    def repeat(self, n_bytes: int) -> None:
        """Count an array of `n_bytes` that may repeat bytes of others.

        Raises:
            UnsafeDataError: there are too many.
        """
        self.repeats_left -= n_bytes
        if self.repeats_left < 0:
            raise UnsafeDataError("its arrays repeat a few bytes far too often")


class Walk:
    """Measures values in lists, tuples, sets and dicts; each container is walked once, however often it occurs.

    Args:
        leaves: the types that they may hold beside str, bytes, numbers and None.
        containers: the types of containers that they may be.

    Example:
        >>> pair = ("a", "b")
        >>> for _ in range(60):
        ...     pair = (pair, pair)
        >>> Walk(()).count(pair) > 2**60
        True
    """

    def __init__(
        self, leaves: tuple[type, ...], containers: tuple[type, ...] = (dict, list, tuple, set, frozenset)
    ) -> None:
        self.leaves, self.containers = leaves, containers
        self.plain = set(_PLAIN)
        self.known: dict[int, tuple[int, int]] = {}

    def count(self, value: object) -> int:
        """Return how many values there are in one, each counted as often as it occurs.

        Raises:
            UnsafeDataError: it is nested too deep or holds itself, or something of another type.
        """
        return self._measure(value, 0)[0]

    def _measure(self, value: object, depth: int) -> tuple[int, int]:
        """Return the number of values and of levels in `value`, which lies `depth` levels deep."""
        if isinstance(value, self.leaves):
            self.plain.add(type(value))
        if type(value) in self.plain:
            return 1, 0
        found = self.known.get(id(value))
        if found is None:
            self.known[id(value)] = 1, _DEEPEST + 1  # until it is known: who meets it now is inside it
            found = self.known[id(value)] = self._measure_parts(self._parts(value), depth)
        if depth + found[1] > _DEEPEST:
            raise UnsafeDataError(f"nested more than {_DEEPEST} deep, or in itself")
        return found

    def _measure_parts(self, parts: Collection[object], depth: int) -> tuple[int, int]:
        count, levels = 1 + len(parts), 1
        if not self.plain.issuperset(map(type, parts)):
            if depth >= _DEEPEST:
                raise UnsafeDataError(f"nested more than {_DEEPEST} deep")
            for part in parts:
                if type(part) not in self.plain:
                    more, below = self._measure(part, depth + 1)
                    count += more - 1
                    levels = max(levels, 1 + below)
        return count, levels

    def _parts(self, value: object) -> Collection[object]:
        if not isinstance(value, self.containers):
            raise UnsafeDataError(f"holds a {type(value).__name__}, not plain data")
        if isinstance(value, dict):
            return [*value, *value.values(), *getattr(value, "__dict__", {}).values()]
        return cast("Collection[object]", value)
