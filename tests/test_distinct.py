from __future__ import annotations

import random
import tracemalloc
from hashlib import blake2b

from searchfit.distinct import SIZE, Distinct


def digest(number: int) -> bytes:
    return blake2b(str(number).encode(), digest_size=SIZE).digest()


def test_it_says_what_a_set_says() -> None:
    chance = random.Random(3)
    seen, distinct = set(), Distinct()
    for _ in range(20_000):
        one = digest(chance.randrange(9000))
        assert (one in distinct) == (one in seen)
        assert distinct.add(one) == (one not in seen)
        seen.add(one)
    assert len(distinct) == len(seen)


def test_hashes_that_want_one_place_all_find_one() -> None:
    same = [b"\xff" * 8 + number.to_bytes(8, "big") for number in range(600)]
    distinct = Distinct()
    assert all(distinct.add(one) for one in same)
    assert all(one in distinct for one in same)
    assert not any(distinct.add(one) for one in same)
    assert b"\xff" * 7 + b"\xfe" + bytes(8) not in distinct


def test_it_takes_less_than_half_of_the_memory_of_a_set() -> None:
    held = []
    for make in (set, Distinct):
        tracemalloc.start()
        kept = make()
        for number in range(20_000):
            kept.add(digest(number))
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert held[1] <= 46 * 20_000
    assert held[1] < 0.5 * held[0]
