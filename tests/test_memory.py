"""Memory that is lent again: what comes back, how, and how much is kept."""

from __future__ import annotations

import sys

import torch

from neurofmx_wds.loading.memory import BatchMemory


def test_nothing_of_python_runs_when_a_batch_is_let_go() -> None:
    """A Ctrl-C that fell into it would only be printed, and training would go on."""
    memory = BatchMemory()
    held = [memory.empty((3, 4), torch.float32) for _ in range(2)]
    calls: list[str] = []
    sys.setprofile(lambda frame, event, _: calls.append(frame.f_code.co_name) if event == "call" else None)
    held.clear()
    sys.setprofile(None)
    assert not calls
    first, second, third = (memory.with_rows((3, 4), torch.float32) for _ in range(3))
    assert len({tensor.data_ptr() for tensor, _ in (first, second, third)}) == 3


def test_memory_of_a_batch_that_a_ctrl_c_cut_off_is_not_missed() -> None:
    memory = BatchMemory()
    held = [memory.empty((3, 4), torch.float32)]
    leases = list(memory._leases.values())
    memory._leases.clear()  # as when the interrupt comes just before it is noted
    held.clear()
    assert len(leases) == 1 and memory.empty((3, 4), torch.float32).shape == (3, 4)


def test_no_more_memory_is_kept_than_was_lent() -> None:
    """And half as much: an epoch's smaller last batch does not cost the others theirs."""
    memory = BatchMemory()
    places: list[set[int]] = [set(), set(), set()]
    for epoch in places:
        for n in (100, 100, 100, 40):
            held = [memory.empty((n, 1000), torch.float32), memory.empty((n,), torch.int64)]
            epoch.update(each.data_ptr() for each in held)
            del held
    assert places[0] == places[1] == places[2]
    for n in range(100):
        memory.empty((100, n + 1), torch.float32)
        kept = sum(base.nbytes for free in memory._free.values() for base, _ in free)
        assert kept <= 1.5 * (100 * 1000 * 4 + 100 * 8)
