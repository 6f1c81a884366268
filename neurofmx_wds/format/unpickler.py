"""An interpreter of pickles, in which nothing can run but what a list allows, and not more of it than a budget allows.

pickle's own, in Python, so that each step can be refused before it is taken. Knows nothing of numpy or torch.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from ..errors import UnsafeDataError
from .limits import Budget

Allowed = Mapping[tuple[str, str], Any]

_REFUSED = (
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER),
    *(pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.READONLY_BUFFER),
)
_TEXT = frozenset({str, bytes})
_FLAT = _TEXT | {bool, float, complex, type(None)}
_OBJECT = 64  # what an object that a few bytes make is charged
_LARGEST_INT = 512  # bits of a key
_LONGEST_TUPLE = 32  # values in a key
_MOST_KEYS = 10_000  # other than str and bytes, whose hashes nobody can foresee, in one dict or set


class Made:
    """A function that pickles may call: it takes the budget first.

    Args:
        function: what is called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class Unpickler(pickle._Unpickler):
    """Reads one pickle of plain containers, and of what `allowed` makes.

    Args:
        stream: where the pickle begins.
        allowed: module and name → a :class:`Made`, or a value that the pickle may only hold.
        budget: what it may cost; shared by the pickles of one payload.
        scalars: types of hashable values that the allowed functions make.
        encoding: how the strings of Python 2 are read.
    """

    opcodes: ClassVar[dict[bytes, Callable[[Any], None]]] = {
        bytes([code]): load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in _REFUSED
    }
    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        stream: io.BytesIO,
        allowed: Allowed,
        budget: Budget,
        scalars: tuple[type, ...] = (),
        encoding: str = "ASCII",
    ) -> None:
        super().__init__(stream, encoding=encoding)
        self.read, self.readline, self.readinto = stream.read, stream.readline, stream.readinto
        self.allowed, self.budget, self.scalars = allowed, budget, scalars

    def load(self) -> Any:
        """Return the value that the pickle holds; what it may contain is for the caller to check."""
        self.metastack, self.stack = [], []
        self.append = self.stack.append
        read, opcodes = self.read, self.opcodes
        try:
            while (code := read(1)) != pickle.STOP:
                opcodes[code](self)
        except KeyError as error:
            what = "an opcode or memo that plain arrays do not need" if code else "more bytes than there are"
            raise UnsafeDataError(f"not a readable pickle: it uses {what}") from error
        return self.stack.pop()

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name.

        Raises:
            UnsafeDataError: the name is not allowed.
        """
        if (module, name) not in self.allowed:
            asked = f"{module}.{name}"[:200]
            raise UnsafeDataError(f"the pickle asks for {asked}, not a plain array or container")
        return self.allowed[module, name]

    def _load_frame(self) -> None:
        self.read(8)  # how much to read ahead: everything is in memory

    def _load_reduce(self) -> None:
        args, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, Made) or type(args) is not tuple:
            raise UnsafeDataError("the pickle calls something that is not to be called")
        self.budget.spend(_OBJECT + len(args))
        self.stack[-1] = made.function(self, *args)

    def _load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        self.budget.spend(_OBJECT)
        self.build(target, state)

    def build(self, target: Any, state: Any) -> None:
        """Give an object that an allowed function made its state."""
        if type(target) is not OrderedDict or type(state) is not dict or list(state) != ["_metadata"]:
            raise UnsafeDataError(f"the pickle gives a {type(target).__name__} a state of its own")
        target._metadata = state["_metadata"]  # type: ignore[attr-defined]  # of a module's state_dict()

    def _load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(size)))  # pickle's own allocates whatever is claimed

    def _target(self, *kinds: type) -> Any:
        target = self.stack[-1]
        if type(target) not in kinds:
            raise UnsafeDataError(f"the pickle puts items into a {type(target).__name__}")
        return target

    def _load_append(self) -> None:
        value = self.stack.pop()
        self._target(list).append(value)

    def _load_appends(self) -> None:
        items = self.pop_mark()
        self._target(list).extend(items)

    def _load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        target = self._target(dict, OrderedDict)
        self.check_keys([key], len(target))
        target[key] = value

    def _load_setitems(self) -> None:
        items = self.pop_mark()
        target = self._target(dict, OrderedDict)
        self.check_keys(items[::2], len(target))
        target.update(zip(items[::2], items[1::2], strict=True))

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.check_keys(items[::2], 0)
        self.append(dict(zip(items[::2], items[1::2], strict=True)))

    def _load_empty_set(self) -> None:
        self.budget.spend(_OBJECT)
        self.append(set())

    def _load_additems(self) -> None:
        items = self.pop_mark()
        target = self._target(set)
        self.check_keys(items, len(target))
        target.update(items)

    def _load_frozenset(self) -> None:
        items = self.pop_mark()
        self.budget.spend(_OBJECT)
        self.check_keys(items, 0)
        self.append(frozenset(items))

    def check_keys(self, keys: Iterable[Any], n_there: int) -> None:
        """Refuse keys that would be costly to hash or to tell apart.

        Args:
            keys: what becomes a key of a dict or set.
            n_there: how many keys it has already.

        Raises:
            UnsafeDataError: a key is no text, number, or short tuple of these, or too many are not text.
        """
        others = [key for key in keys if type(key) not in _TEXT]
        if not others:
            return
        if n_there + len(others) > _MOST_KEYS:
            raise UnsafeDataError(f"the pickle holds more than {_MOST_KEYS:,} keys in one place that are not text")
        for key in others:
            self._count_key(key, _LONGEST_TUPLE)

    def _count_key(self, key: Any, room: int) -> int:
        """Return how much of `room`, a number of values, is left behind `key`."""
        if room <= 0:
            raise UnsafeDataError(f"the pickle uses a tuple of more than {_LONGEST_TUPLE} values as a key")
        room -= 1
        if type(key) is int:
            if key.bit_length() > _LARGEST_INT:
                raise UnsafeDataError("the pickle uses a huge number as a key")
        elif type(key) is tuple:
            for part in key:
                room = self._count_key(part, room)
        elif type(key) not in _FLAT and not isinstance(key, self.scalars):
            raise UnsafeDataError(f"the pickle uses a {type(key).__name__} as a key")
        return room

    opcodes |= {
        pickle.FRAME: _load_frame,
        pickle.REDUCE: _load_reduce,
        pickle.BUILD: _load_build,
        pickle.BYTEARRAY8: _load_bytearray8,
        pickle.APPEND: _load_append,
        pickle.APPENDS: _load_appends,
        pickle.SETITEM: _load_setitem,
        pickle.SETITEMS: _load_setitems,
        pickle.DICT: _load_dict,
        pickle.EMPTY_SET: _load_empty_set,
        pickle.ADDITEMS: _load_additems,
        pickle.FROZENSET: _load_frozenset,
    }
