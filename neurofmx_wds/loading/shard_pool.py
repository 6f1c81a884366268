"""Which shards are kept open: as many as memory and the process's file limit allow, over all readers of the process.

Knows limits and open shards; knows nothing of samples or batches.
"""

from __future__ import annotations

import math
import os
import resource
import threading
import weakref
from collections import OrderedDict

from ..storage.regular import is_out_of_files
from .open_shard import OpenShard, ShardOpener
from .page_in import page_in

_MAX_BYTES = 512 << 20  # of what one reader's open shards take beside their mapped files
_MAX_OPEN = 1 << 14  # of all readers: the system lets a process map some 65,000 files

_pools: weakref.WeakSet[ShardPool] = weakref.WeakSet()  # of this process, and those inherited from its parent
_bookkeeping = threading.Lock()  # of what they have open; held for moments only


def max_open_shards() -> int:
    """Return how many shards all readers together may keep open: half of the files that the process may open."""
    return max(16, min(_MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


class ShardPool:
    """Opens the shards of one reader and keeps them open, within limits that all pools of the process share.

    Those opened first are closed first. Threads may share a pool.

    Args:
        opener: opens a shard.
        max_open: shards that this pool keeps open at most.

    Attributes:
        held: the shards that are open now; looking there first saves a call.
        share: the share of a shard's samples that this process is about to read.
    """

    def __init__(self, opener: ShardOpener, max_open: int | None = None) -> None:
        self.opener = opener
        self.max_open = max_open or _MAX_OPEN
        self.n_at_once = min(self.max_open, max_open_shards() // 2)  # others may be reading too
        self.held: OrderedDict[int, OpenShard] = OrderedDict()
        self.share = 0.0
        self._bytes = 0
        self._opening = threading.Lock()
        with _bookkeeping:
            _pools.add(self)

    def __len__(self) -> int:
        """How many shards are open."""
        return len(self.held)

    def __getitem__(self, i: int) -> OpenShard:
        """Return the i-th shard, opened if it is not open yet.

        Raises:
            ShardError: as :class:`ShardOpener`.
            OSError: it cannot be opened.
        """
        return self.held.get(i) or self._keep_open(i)

    def max_bytes(self, i: int, n: float) -> int:
        """Return the memory that `n` open shards like the i-th take at most, in bytes, within the pool's limit."""
        each = self[next(iter(self.held), i)].n_bytes
        return min(_MAX_BYTES + each, math.ceil(each * n))

    def _keep_open(self, i: int) -> OpenShard:
        with self._opening:
            shard = self.held.get(i)
            if shard is not None:  # another thread was faster
                return shard
            shard = self._opened(i)
            with _bookkeeping:
                self.held[i] = shard
                self._bytes += shard.n_bytes
                while len(self) > self.max_open or (self._bytes > _MAX_BYTES and len(self) > 1):
                    self._close_first()
                _close_down_to(max_open_shards())
            if shard.is_cached and self.share * shard.n_read_bytes > shard.index.tar_size / 2:
                page_in(shard)
            return shard

    def _opened(self, i: int) -> OpenShard:
        """Open the i-th shard; while the process has no file left for it, close half of what readers keep open."""
        while True:
            try:
                return self.opener(i)
            except OSError as error:
                if not is_out_of_files(error):
                    raise
                with _bookkeeping:
                    if not _close_down_to(sum(map(len, _pools)) // 2):
                        problem = f"{error.strerror}, though no shard is kept open (allow more: ulimit -n)"
                        raise OSError(error.errno, problem, error.filename) from error

    def _close_first(self) -> None:
        """Drop the shard opened first: it is closed once no batch is being read from it."""
        self._bytes -= self.held.popitem(last=False)[1].n_bytes

    def __reduce__(self) -> tuple[type[ShardPool], tuple[ShardOpener, int]]:
        return ShardPool, (self.opener, self.max_open)


def _close_down_to(n: int) -> bool:
    """Keep no more than `n` shards open, each time closing one of the pool that has most; return whether any closed."""
    excess = sum(map(len, _pools)) - n
    for _ in range(excess):
        max(_pools, key=len)._close_first()
    return excess > 0


def _unlock_child() -> None:
    """Give a forked child locks of its own: a thread of the parent, which the child lacks, may hold the parent's."""
    for pool in _pools:
        pool._opening = threading.Lock()
    _bookkeeping.release()


os.register_at_fork(before=_bookkeeping.acquire, after_in_parent=_bookkeeping.release, after_in_child=_unlock_child)
