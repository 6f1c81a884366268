"""The checksum of payloads is zlib's, whoever works it out and however the bytes are cut."""

from __future__ import annotations

import subprocess
import sys
import zlib

from hypothesis import given
from hypothesis import strategies as st

from neurofmx_wds.storage.checksums import crc32_of


@given(seed=st.binary(min_size=1, max_size=50), times=st.integers(0, 20_000), cuts=st.lists(st.integers(0, 10**6)))
def test_it_is_that_of_zlib(seed: bytes, times: int, cuts: list[int]) -> None:
    data = seed * times
    ends = sorted(min(cut, len(data)) for cut in cuts)
    parts = [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
    assert crc32_of(parts) == zlib.crc32(data)
    assert crc32_of(map(memoryview, parts)) == zlib.crc32(data)


def test_it_needs_no_package() -> None:
    code = (
        "import sys; sys.modules['isal'] = None\n"
        "from neurofmx_wds.storage.checksums import crc32, crc32_of\nimport zlib\n"
        "data = bytes(range(256)) * 5000\nassert crc32 is zlib.crc32 and crc32_of([data]) == zlib.crc32(data)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
