"""Caches bounded by bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from builder.caches import ByteCache
from tests.limits import HANG_S


def test_what_was_used_last_is_kept_up_to_so_many_bytes():
    made: list[int] = []
    cache = ByteCache(lambda n: made.append(n) or bytes(n), len, 10)
    for n in (4, 5, 4, 3, 4, 5):  # 3 takes the place of 5
        assert cache(n) == bytes(n)
    assert made == [4, 5, 3, 5]
    assert cache.held_bytes == 9
    assert len(cache(40)) == 40  # one thing is kept whatever its size
    assert cache.held_bytes == 40


def test_threads_that_make_the_same_count_it_once():
    both = Barrier(2)

    def make(n: int) -> bytes:
        both.wait(HANG_S)
        return bytes(n)

    cache = ByteCache(make, len, 10)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(cache, (4, 4))
    assert first is second
    assert cache.held_bytes == 4
