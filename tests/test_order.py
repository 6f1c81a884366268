"""The laws of order.py, against a slow reference of Python integers and lists written from its docstrings."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from counting import lines_run
from hypothesis import given, settings
from hypothesis import strategies as st

from neurofmx_wds.order.epoch import LIMIT, ORDER_VERSION, Bijection, EpochOrder

# The reference

WORD = 2**64
M1, M2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9


def reference_image(x: int, n: int, key: int) -> int:
    b = next(b for b in itertools.count(max(0, math.isqrt(n) - 2), 1) if b * b >= n and b % 2 == 0 and b > 0)
    a = -(-n // b)

    def scramble(i: int, value: int, modulus: int) -> int:
        h = ((value ^ (key + i * M1) % WORD) * M1) % WORD
        h = ((h ^ (h >> 32)) * M2) % WORD
        return ((h >> 32) * modulus) >> 32

    while True:
        left, right = divmod(x, b)
        for i in range(24 if n < 64 else 8):
            if i % 2 == 0:
                left = (left + scramble(i, right, a)) % a
            else:
                right = (right + scramble(i, left, b)) % b
        x = left * b + right
        if x < n:
            return x


def reference_key(seed: int, epoch: int, purpose: str) -> int:
    digest = hashlib.blake2b(f"{ORDER_VERSION},{seed},{epoch},{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def permuted(items: list, key: int) -> list:
    return [items[reference_image(i, len(items), key)] for i in range(len(items))]


def reference_order(order: EpochOrder) -> list[int]:
    ids = list(range(len(order)))
    if order.shuffle is False:
        return ids
    if order.shuffle == "full":
        return permuted(ids, reference_key(order.seed, order.epoch, "all"))
    blocks = [ids[i : i + order.block_size] for i in range(0, len(ids), order.block_size)]
    mixed = sum(permuted(blocks, reference_key(order.seed, order.epoch, "blocks")), [])
    result = []
    for w, first in enumerate(range(0, len(ids), order.buffer_size)):
        h = ((w + 1) * M2 % WORD) ^ reference_key(order.seed, order.epoch, "window")
        result += permuted(mixed[first : first + order.buffer_size], (h ^ (h >> 32)) * M1 % WORD)
    return result


# Any order

seeds = st.integers(0, 100) | st.integers(-(2**128), 2**128)
shuffles = st.sampled_from([False, True, "full"])
sizes = st.integers(1, 12) | st.integers(1, 300)
small_counts = st.lists(st.integers(0, 40), max_size=8)
huge_counts = st.lists(st.integers(0, LIMIT // 8), min_size=1, max_size=8).filter(any)


def orders(counts: st.SearchStrategy, lengths: st.SearchStrategy) -> st.SearchStrategy[EpochOrder]:
    return st.builds(EpochOrder, counts, seeds, st.integers(0, 3) | st.integers(0, LIMIT), shuffles, lengths, lengths)


small_orders = orders(small_counts, sizes)
huge_orders = orders(huge_counts | st.just([1 << 40]), sizes | st.integers(1, LIMIT))
quick = settings(deadline=None, max_examples=100)


def some_range(data: st.DataObject, n: int, most: int = 400) -> tuple[int, int]:
    start = data.draw(st.integers(0, n) | st.integers(max(0, n - most), n), "start")
    return start, data.draw(st.integers(start, min(n, start + most)), "stop")


def order_of(n: int, shuffle: Any, seed: int = 0, epoch: int = 0, buffer_size: int = 1000, block_size: int = 10) -> Any:
    return EpochOrder([n], seed, epoch, shuffle, buffer_size, block_size)


# The bijection


@quick
@given(st.integers(1, 100) | st.integers(1, LIMIT), st.integers(0, WORD - 1), st.data())
def test_bijection_is_the_formula(n: int, key: int, data: st.DataObject) -> None:
    x = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=10))
    keys = np.full(len(x), key, np.uint64)
    images = Bijection(n).forward(np.array(x, np.uint64), keys)
    assert images.tolist() == [reference_image(i, n, key) for i in x]
    assert Bijection(n).inverse(images, keys).tolist() == x


def test_bijection_reaches_every_number_once() -> None:
    for n in [*range(1, 130), 255, 256, 257, 4095, 4096, 4097, 10007]:
        x = np.arange(n, dtype=np.uint64)
        for key in (0, 1, WORD - 1):
            keys = np.full(n, key, np.uint64)
            images = Bijection(n).forward(x, keys)
            assert np.array_equal(np.sort(images), x), (n, key)
            assert np.array_equal(Bijection(n).inverse(images, keys), x), (n, key)


def test_each_element_follows_its_own_key() -> None:
    x, keys = np.arange(500, dtype=np.uint64) % 37, np.arange(500, dtype=np.uint64) ** 5
    assert Bijection(37).forward(x, keys).tolist() == [
        reference_image(int(i), 37, int(key)) for i, key in zip(x, keys, strict=True)
    ]


# The order


@quick
@given(small_orders)
def test_order_is_the_reference(order: EpochOrder) -> None:
    assert order.sample_ids(0, len(order)).tolist() == reference_order(order)


@quick
@given(small_orders)
def test_every_sample_once_and_back(order: EpochOrder) -> None:
    ids = order.sample_ids(0, len(order))
    assert ids.dtype == np.int64
    assert sorted(ids.tolist()) == list(range(sum(order.shard_counts)))
    back = order.positions(ids)
    assert back.dtype == np.int64
    assert back.tolist() == list(range(len(order)))


@quick
@given(small_orders, st.data())
def test_a_range_is_part_of_the_whole(order: EpochOrder, data: st.DataObject) -> None:
    start, stop = some_range(data, len(order))
    assert order.sample_ids(start, stop).tolist() == order.sample_ids(0, len(order))[start:stop].tolist()


@quick
@given(huge_orders, st.data())
def test_huge_orders_go_there_and_back(order: EpochOrder, data: st.DataObject) -> None:
    n = sum(order.shard_counts)
    start, stop = some_range(data, n)
    ids = order.sample_ids(start, stop)
    assert len(set(ids.tolist())) == stop - start
    assert all(0 <= i < n for i in ids.tolist())
    assert order.positions(ids).tolist() == list(range(start, stop))
    middle = data.draw(st.integers(start, stop))
    assert [*order.sample_ids(start, middle), *order.sample_ids(middle, stop)] == ids.tolist()


@quick
@given(seeds, st.integers(1, 1 << 20), st.integers(1, 1 << 20), st.integers(1, 1 << 20), st.data())
def test_huge_orders_of_whole_blocks_are_the_reference(
    seed: int, buffer_size: int, block_size: int, repeats: int, data: st.DataObject
) -> None:
    n = math.lcm(buffer_size, block_size) * repeats
    position = data.draw(st.integers(0, n - 1))
    w, place = divmod(position, buffer_size)
    h = ((w + 1) * M2 % WORD) ^ reference_key(seed, 5, "window")
    slot, place = divmod(w * buffer_size + reference_image(place, buffer_size, (h ^ (h >> 32)) * M1 % WORD), block_size)
    expected = reference_image(slot, n // block_size, reference_key(seed, 5, "blocks")) * block_size + place
    ids = EpochOrder([n], seed, 5, True, buffer_size, block_size).sample_ids(position, position + 1)
    assert ids.tolist() == [expected]


@pytest.mark.parametrize("shuffle", [False, True, "full"])
@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, LIMIT])
def test_tiny_epochs(shuffle: Any, n: int, size: int) -> None:
    for seed, counts in itertools.product((-1, 0, 7), ([n], [0, n, 0], [1] * n, [])[: 4 if n == 0 else 3]):
        order = EpochOrder(counts, seed, 0, shuffle, size, size)
        assert len(order) == n
        assert sorted(order.sample_ids(0, n).tolist()) == list(range(n))
        assert order.sample_ids(n, n).tolist() == order.positions(np.array([], np.int64)).tolist() == []


@quick
@given(small_orders, st.data())
def test_shards_do_not_enter_the_order(order: EpochOrder, data: st.DataObject) -> None:
    n = len(order)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=5)))
    counts = np.diff([0, *cuts, n]).tolist()
    settings_ = (order.seed, order.epoch, order.shuffle, order.buffer_size, order.block_size)
    for other in (EpochOrder(counts, *settings_), EpochOrder(np.array(counts), *settings_), EpochOrder(n, *settings_)):
        assert np.array_equal(other.sample_ids(0, n), order.sample_ids(0, n))


def test_of_epoch_is_the_same_order_made_afresh() -> None:
    for shuffle in (False, True, "full"):
        ids = order_of(500, shuffle).of_epoch(7).sample_ids(0, 500)
        assert np.array_equal(ids, order_of(500, shuffle, epoch=7).sample_ids(0, 500))


@pytest.mark.parametrize("integer", [np.uint8, np.int8, np.int32, np.uint32, np.int64, np.uint64])
def test_numpy_integers_mean_what_python_integers_mean(integer: type[np.integer]) -> None:
    for shuffle in (True, "full"):
        plain = EpochOrder([1 << 40], 3, 1, shuffle, 100, 64).sample_ids(1 << 39, (1 << 39) + 500)
        numpy = EpochOrder(np.array([1 << 40]), *map(integer, (3, 1)), shuffle, *map(integer, (100, 64)))
        assert np.array_equal(numpy.sample_ids(1 << 39, (1 << 39) + 500), plain)
        assert np.array_equal(numpy.positions(plain), np.arange(500) + (1 << 39))


@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_what_is_passed_in_stays_as_it_was(shuffle: Any) -> None:
    order, ids = order_of(100, shuffle), np.arange(100)
    order.positions(ids)[:] = 0
    order.locate(ids)[1][:] = 0
    assert ids.tolist() == list(range(100))


# Places


@quick
@given(small_counts)
def test_places_are_those_of_a_table(counts: list[int]) -> None:
    order = EpochOrder(counts, 0, 0, False, 1, 1)
    table = [(shard, offset) for shard, count in enumerate(counts) for offset in range(count)]
    shards, offsets = order.locate(np.arange(len(table)))
    assert list(zip(shards.tolist(), offsets.tolist(), strict=True)) == table
    assert [order.sample_id(*place) for place in table] == list(range(len(table)))
    for shard, count in enumerate(counts):
        assert order.sample_id(shard, count) == order.sample_id(shard + 1, 0) == sum(counts[: shard + 1])


@pytest.mark.parametrize("place", [(-1, 0), (2, 1), (3, 0), (0, -1), (0, 4), (1, 3)])
def test_places_that_are_not_there(place: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match=rf"no (shard|sample) ({place[0]}|{place[1]})\b"):
        EpochOrder([3, 2], 0, 0, False, 1, 1).sample_id(*place)


# Refusals


@pytest.mark.parametrize("start, stop", [(-1, 2), (0, 11), (5, 4), (11, 11)])
def test_positions_outside_the_epoch(start: int, stop: int) -> None:
    with pytest.raises(IndexError, match=rf"{start} to {stop} .* 10 samples"):
        order_of(10, True).sample_ids(start, stop)


@pytest.mark.parametrize("shuffle", [False, True, "full"])
@pytest.mark.parametrize("ids", [[-1, 3], [10], [0, 10]])
def test_samples_outside_the_dataset(shuffle: Any, ids: list[int]) -> None:
    with pytest.raises(IndexError, match=rf"{min(ids)} to {max(ids)} .* 10 samples"):
        order_of(10, shuffle).positions(np.array(ids))


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"shard_counts": [3, -1]}, r"shard_counts .*\[3, -1\]"),
        ({"shard_counts": [3.5]}, r"shard_counts .*\[3\.5\]"),
        ({"shard_counts": [[3]]}, r"shard_counts .*\[\[3\]\]"),
        ({"shard_counts": ["3"]}, r"shard_counts .*\['3'\]"),
        ({"shard_counts": None}, "shard_counts .*None"),
        ({"shard_counts": True}, "shard_counts .*True"),
        ({"shard_counts": [LIMIT, 1]}, f"shard_counts .*{LIMIT + 1}"),
        ({"shard_counts": np.array([2**63, 2**63], np.uint64)}, f"shard_counts .*{2**64}"),
        ({"shuffle": "Full"}, "shuffle .*'Full'"),
        ({"shuffle": 1}, "shuffle .*1"),
        ({"shuffle": None}, "shuffle .*None"),
        ({"seed": 1.0}, r"seed .*1\.0"),
        ({"seed": None}, "seed .*None"),
        ({"seed": True}, "seed .*True"),
        ({"seed": 2**128 + 1}, f"seed .*{2**128 + 1}"),
        ({"seed": -(2**128) - 1}, f"seed .*-{2**128 + 1}"),
        ({"epoch": -1}, "epoch .*-1"),
        ({"epoch": 0.0}, r"epoch .*0\.0"),
        ({"epoch": LIMIT + 1}, f"epoch .*{LIMIT + 1}"),
        ({"buffer_size": 0}, "buffer_size .*0"),
        ({"buffer_size": 10**30}, f"buffer_size .*{10**30}"),
        ({"buffer_size": "9"}, "buffer_size .*'9'"),
        ({"block_size": 0}, "block_size .*0"),
        ({"block_size": -5}, "block_size .*-5"),
        ({"block_size": False}, "block_size .*False"),
    ],
)
def test_bad_values_are_refused_by_name_and_value(wrong: dict[str, Any], said: str) -> None:
    right = {"shard_counts": [5], "seed": 0, "epoch": 0, "shuffle": True, "buffer_size": 3, "block_size": 2}
    with pytest.raises(ValueError, match=said):
        EpochOrder(**{**right, **wrong})


# Version 1, for ever: a saved state must mean the same samples in every later release


GOLDEN = [  # (samples, seed, epoch, shuffle, buffer_size, block_size), first position, ids from there on
    ((10, 0, 0, True, 4, 2), 0, [8, 7, 6, 9, 4, 0, 1, 5, 3, 2]),
    ((10, 0, 1, True, 4, 2), 0, [0, 5, 1, 4, 9, 8, 3, 2, 7, 6]),
    ((23, -1, 0, True, 7, 5), 0, [15, 16, 17, 1, 0, 19, 18, 4, 11, 2, 3, 10, 12, 13, 6, 7]),
    ((100, 2**64 + 1, 3, True, 30, 8), 0, [20, 66, 93, 95, 21, 64, 18, 19, 65, 85, 68, 81, 92, 89, 94, 67]),
    ((10**6, 42, 0, True, 1000, 256), 500000, [845918, 936505, 699314, 699367]),
    ((2**40, 42, 7, True, 1000, 64), 2**39, [300711229926, 100256428597, 339637190318, 100256428556]),
    ((2**62, -(2**128), 2**62, True, 4096, 1000), 2**62 - 2, [970126282413932134, 1837645318382602563]),
    ((10, 0, 0, "full", 4, 2), 0, [5, 6, 1, 4, 8, 7, 9, 2, 3, 0]),
    ((10, 0, 1, "full", 4, 2), 0, [2, 1, 3, 6, 7, 4, 9, 0, 5, 8]),
    ((23, -1, 0, "full", 7, 5), 0, [17, 15, 16, 5, 12, 11, 19, 0, 10, 21, 18, 20, 6, 2, 3, 22]),
    ((100, 2**64 + 1, 3, "full", 30, 8), 0, [77, 71, 21, 60, 47, 34, 37, 36, 56, 32, 29, 41, 96, 9, 82, 11]),
    ((10**6, 42, 0, "full", 1000, 256), 500000, [452570, 5424, 854403, 778448]),
    ((2**40, 42, 7, "full", 1000, 64), 2**39, [728859712614, 5224125581, 173977409190, 772782238476]),
    ((2**62, -(2**128), 2**62, "full", 4096, 1000), 2**62 - 2, [115478120362369911, 4054232097285788956]),
    ((10, 9, 9, False, 4, 2), 3, [3, 4, 5]),
]
DIGESTS = {
    False: "284099e2ba0e70a3a4ca8e3c5b8d071d07e64ebbe88bd76a82b8f1952f355ae7",
    True: "9bd51689da201a777f220d6d7c4dfbd4398562253729fc1f9db18935a4709768",
    "full": "6f8193a97368d3f03ba72d19295161fc265106faf6013ab38438e229b25108ef",
}


@pytest.mark.parametrize("setting, start, ids", GOLDEN)
def test_golden_vectors(setting: tuple[Any, ...], start: int, ids: list[int]) -> None:
    assert ORDER_VERSION == 1
    order = EpochOrder(*setting)
    assert order.sample_ids(start, start + len(ids)).tolist() == ids
    assert order.positions(np.array(ids)).tolist() == list(range(start, start + len(ids)))


@pytest.mark.parametrize("shuffle", DIGESTS)
def test_golden_digests(shuffle: Any) -> None:
    ids = EpochOrder([9999], 42, 1, shuffle, 1000, 64).sample_ids(0, 9999)
    assert hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest() == DIGESTS[shuffle]


@pytest.mark.parametrize(
    "n, images",
    [(5, [1, 3, 2, 4, 0]), (63, [38, 33, 46, 3, 25]), (64, [7, 33, 60, 30, 59]), (1000, [357, 447, 458, 903, 214])],
)
def test_golden_bijections(n: int, images: list[int]) -> None:
    assert Bijection(n).forward(np.arange(5, dtype=np.uint64), np.full(5, 12345, np.uint64)).tolist() == images


# Chance. Seeds are fixed, so these pass or fail for good; 5 standard deviations is one in two million.


def deviation(observed: np.ndarray, expected: float, df: int) -> float:
    """Standard deviations by which a chi-square lies from what chance gives."""
    return (float(np.sum((observed - expected) ** 2)) / expected - df) / math.sqrt(2 * df)


def frequencies(permutations: np.ndarray) -> np.ndarray:
    """How often each of the n! permutations is among the rows of an array (…, n)."""
    n = permutations.shape[1]
    _, seen = np.unique(permutations @ (n ** np.arange(n)), return_counts=True)
    return np.pad(seen, (0, math.factorial(n) - len(seen)))


@pytest.mark.parametrize("n, n_seeds", [(2, 400), (3, 600), (4, 1000), (5, 2000)])
def test_full_gives_every_permutation_alike_over_seeds(n: int, n_seeds: int) -> None:
    observed = frequencies(np.stack([order_of(n, "full", seed).sample_ids(0, n) for seed in range(n_seeds)]))
    assert abs(deviation(observed, n_seeds / len(observed), len(observed) - 1)) < 5


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (7, 8))])
def test_windows_get_every_permutation_alike(n: int) -> None:
    windows = 50 * math.factorial(n)
    rows = order_of(n * windows, True, buffer_size=n, block_size=n * windows).sample_ids(0, n * windows)
    rows = rows.reshape(windows, n) - n * np.arange(windows)[:, None]
    observed = frequencies(rows)
    assert abs(deviation(observed, 50, len(observed) - 1)) < 5


@pytest.mark.parametrize("n", [6, 7, 8, 9, 15, 16, 25, 49, 63, 64, 80, 81])
def test_odd_permutations_are_as_frequent_as_even_ones(n: int) -> None:
    """A Feistel network of odd halves makes even permutations only."""
    keys = np.repeat(np.random.default_rng(0).integers(0, WORD, 1000, np.uint64), n)
    images = Bijection(n).forward(np.tile(np.arange(n, dtype=np.uint64), 1000), keys).reshape(1000, n)
    pairs = images[:, :, None] > images[:, None, :]
    inversions = np.triu(pairs).sum(axis=(1, 2))
    assert abs(np.mean(inversions % 2) - 0.5) < 5 * 0.5 / math.sqrt(1000)


def table_of(sequences: list[np.ndarray], n_bins: int) -> np.ndarray:
    """How often samples of part j of the dataset stand in part i of the epoch; shape (n_bins, n_bins)."""
    n = len(sequences[0])
    part = np.arange(n) * n_bins // n
    return sum(np.bincount(part * n_bins + part[ids], minlength=n_bins**2) for ids in sequences).reshape(n_bins, -1)


@pytest.mark.parametrize(
    "n, n_bins, n_seeds", [(10, 10, 500), (63, 63, 600), (64, 64, 600), (1000, 50, 60), (10**5, 100, 3)]
)
def test_full_puts_every_sample_everywhere_alike(n: int, n_bins: int, n_seeds: int) -> None:
    observed = table_of([order_of(n, "full", seed).sample_ids(0, n) for seed in range(n_seeds)], n_bins)
    assert abs(deviation(observed, n * n_seeds / n_bins**2, (n_bins - 1) ** 2)) < 5


@pytest.mark.parametrize("n, n_keys", [(12, 5000), (63, 40000), (64, 40000), (100, 100000)])
def test_pairs_of_neighbours_land_everywhere_alike(n: int, n_keys: int) -> None:
    """Two neighbours' images are any two different numbers: what too few rounds would spoil first."""
    keys = np.random.default_rng(1).integers(0, WORD, n_keys, np.uint64)
    first, second = (Bijection(n).forward(np.full(n_keys, x, np.uint64), keys).astype(np.int64) for x in (n - 2, n - 1))
    observed = np.bincount(first * n + second, minlength=n * n).reshape(n, n)
    assert not observed.diagonal().any()
    observed = observed[~np.eye(n, dtype=bool)]
    assert abs(deviation(observed, n_keys / len(observed), len(observed) - 1)) < 5


@pytest.mark.parametrize("shuffle", [True, "full"])
def test_seeds_and_epochs_have_nothing_in_common(shuffle: Any) -> None:
    """Neighbouring ones neither, nor those of one sum, which share an order where seed and epoch are added."""
    n = 10_000
    where = [(5, 3), (5, 4), (6, 3), (6, 2), (-5, 3), (5 + 2**64, 3), (0, 0), (0, 1), (1, 0), (10, 0)]
    sequences = [order_of(n, shuffle, *place, buffer_size=100).sample_ids(0, n) for place in where]
    for one, other in itertools.combinations(sequences, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 * math.sqrt(10 / n)  # blocks of 10 move together
        assert np.mean(one == other) < 20 / n
        assert np.mean(np.diff(one) == np.diff(other)) < 0.05


# Two levels


@pytest.mark.parametrize("n, buffer_size, block_size", [(10_000, 100, 10), (10_000, 1000, 100), (9_990, 100, 10)])
def test_a_window_holds_whole_blocks_of_the_whole_dataset(n: int, buffer_size: int, block_size: int) -> None:
    ids = order_of(n, True, 1, 0, buffer_size, block_size).sample_ids(0, n)
    blocks = [np.unique(ids[first : first + buffer_size] // block_size) for first in range(0, n, buffer_size)]
    assert sum(map(len, blocks)) == n // block_size  # no block is in two windows
    assert max(map(len, blocks)) == buffer_size // block_size
    tenths = np.array([np.bincount(b * 10 * block_size // n, minlength=10) for b in blocks[: n // buffer_size]])
    assert abs(deviation(tenths, tenths[0].sum() / 10, tenths.size - len(tenths) - 9)) < 5


def test_blocks_keep_other_company_in_each_epoch() -> None:
    def companions(epoch: int) -> set[frozenset[int]]:
        windows = order_of(10_000, True, epoch=epoch, buffer_size=50).sample_ids(0, 10_000).reshape(-1, 50) // 10
        return {frozenset(pair) for w in windows for pair in itertools.combinations(np.unique(w).tolist(), 2)}

    assert len(companions(0)) == len(companions(1)) == 200 * 10
    assert len(companions(0) & companions(1)) < 30  # by chance 200 · 10 · 4 / 999 = 8


def shuffled_by_webdataset(n: int, epoch: int) -> np.ndarray:
    pipeline = wds.DataPipeline(lambda: iter(range(n)), wds.shuffle(1000, rng=random.Random(epoch)))
    return np.fromiter(pipeline, np.int64, n)


def quality(sequences: list[np.ndarray]) -> tuple[float, float, float, float]:
    """Of several epochs: distance moved / N, neighbours still adjacent, chi-square / df, recordings in a batch of 32.

    A uniform shuffle has 1/3, 2/N, 1 and (of 50 recordings of N/50 samples) 23.8.
    """
    n = len(sequences[0])
    moved = np.mean([np.abs(ids - np.arange(n)).mean() / n for ids in sequences])
    adjacent = np.mean([(np.abs(np.diff(ids)) == 1).mean() for ids in sequences])
    observed, expected = table_of(sequences, 50), n * len(sequences) / 50**2
    spread = ((observed - expected) ** 2 / expected).sum() / 49**2
    batches = np.concatenate([ids[: n // 32 * 32].reshape(-1, 32) * 50 // n for ids in sequences])
    return float(moved), float(adjacent), float(spread), float(np.mean([len(set(b)) for b in batches.tolist()]))


def test_quality_of_the_shuffles_beside_webdatasets() -> None:
    n, n_epochs = 20_000, 4
    ways: dict[str, Callable[[int], np.ndarray]] = {
        "shuffle=False": lambda epoch: order_of(n, False, 0, epoch).sample_ids(0, n),
        "webdataset .shuffle(1000)": lambda epoch: shuffled_by_webdataset(n, epoch),
        "shuffle=True, blocks of 100": lambda epoch: order_of(n, True, 0, epoch, 1000, 100).sample_ids(0, n),
        "shuffle=True, blocks of 10": lambda epoch: order_of(n, True, 0, epoch, 1000, 10).sample_ids(0, n),
        'shuffle="full"': lambda epoch: order_of(n, "full", 0, epoch).sample_ids(0, n),
    }
    found = {name: quality([way(epoch) for epoch in range(n_epochs)]) for name, way in ways.items()}
    print(f"\n{n} samples, {n_epochs} epochs       moved / N   adjacent    chi2 / df   recordings in a batch of 32")
    for name, values in found.items():
        print(f"{name:28}" + "{:12.4f}{:11.5f}{:13.2f}{:12.1f}".format(*values))
    stored, theirs, coarse, fine, full = found.values()
    assert stored[:2] == (0, 1)
    assert full == pytest.approx((1 / 3, 2 / n, 1, 23.8), rel=0.05, abs=2e-4)
    assert fine == pytest.approx((1 / 3, 2 / 1000, 4, 22), rel=0.2)
    assert coarse[0] == pytest.approx(1 / 3, rel=0.1)
    for ours in (coarse, fine):
        assert ours[0] > 5 * theirs[0]
        assert ours[2] < theirs[2] / 5
    assert coarse[3] > theirs[3]
    assert fine[3] > 2 * theirs[3]


# Cost


@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_memory_does_not_grow_with_the_epoch(shuffle: Any) -> None:
    def peak(n: int) -> int:
        order = order_of(n, shuffle)
        order.sample_ids(0, 1)
        tracemalloc.start()
        try:
            order.positions(order.sample_ids(n // 2, n // 2 + 4096))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(10_000), peak(1 << 60)
    assert large < 1.25 * small + 10_000
    assert large < 4096 * 8 * 20


@pytest.mark.parametrize("shuffle", [False, True, "full"])
def test_time_depends_neither_on_the_epoch_nor_on_the_place(shuffle: Any) -> None:
    """Counted in lines; how long an array each line works on, the test above bounds by its memory."""

    def cost(n: int, start: int) -> int:
        return lines_run(lambda: order_of(n, shuffle).sample_ids(start, start + 4096))

    near = cost(10_000, 100)
    assert 0 < cost(1 << 60, 100) < 4 * near
    assert 0 < cost(1 << 60, (1 << 60) * 99 // 100) < 4 * near


@pytest.mark.slow
@settings(deadline=None, max_examples=5000)
@given(small_orders, huge_orders, st.data())
def test_the_laws_in_depth(order: EpochOrder, huge: EpochOrder, data: st.DataObject) -> None:
    for law in (test_order_is_the_reference, test_every_sample_once_and_back):
        law.hypothesis.inner_test(order)
    test_a_range_is_part_of_the_whole.hypothesis.inner_test(order, data)
    test_huge_orders_go_there_and_back.hypothesis.inner_test(huge, data)
