"""stats: merging is associative, commutative and lossless."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from builder.record.stats import Tally

LEVELS = 20
columns = st.lists(st.tuples(*[st.integers(0, LEVELS - 1)] * 2), max_size=30).map(
    lambda rows: np.array(rows, np.int64).reshape(-1, 2)
)


def tally(*parts: npt.NDArray[np.int64]) -> Tally:
    made = Tally(LEVELS, 2)
    for part in parts:
        made.add(part)
    return made


def merged(*parts: Tally) -> Tally:
    total = Tally(LEVELS, 2)
    for part in parts:
        total.merge(part)
    return total


@given(columns, columns, columns)
def test_merging_is_associative_and_commutative_and_equals_the_whole(
    a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], c: npt.NDArray[np.int64]
) -> None:
    whole = tally(np.concatenate([a, b, c])).to_json()
    x, y, z = tally(a), tally(b), tally(c)
    assert merged(merged(x, y), z).to_json() == whole
    assert merged(x, merged(y, z)).to_json() == whole
    assert merged(z, x, y).to_json() == whole


@given(columns)
def test_json_keeps_everything(values: npt.NDArray[np.int64]) -> None:
    made = tally(values)
    again = Tally.from_json(json.loads(json.dumps(made.to_json())))
    np.testing.assert_array_equal(again.counts, made.counts)
    assert again.to_json() == made.to_json()


@given(columns, st.integers(0, LEVELS - 1))
def test_figures_are_the_exact_ones(values: npt.NDArray[np.int64], first: int) -> None:
    for channel in range(2):
        kept = [v for v in values[:, channel].tolist() if v >= first]
        summary = tally(values).channel(channel, first)
        assert (summary.n, summary.total) == (len(kept), sum(kept))
        if not kept:
            continue
        assert (summary.low, summary.high) == (min(kept), max(kept))
        assert summary.mean == float(Fraction(sum(kept), len(kept)))
        variance = (
            Fraction(sum(v * v for v in kept), len(kept)) - Fraction(sum(kept), len(kept)) ** 2
        )
        assert abs(summary.std**2 - variance) <= 1e-12 * max(1, variance)


@given(columns.filter(len), st.fractions(0, 1, max_denominator=64))
def test_a_quantile_is_the_least_value_that_covers_its_share(
    values: npt.NDArray[np.int64], share: Fraction
) -> None:
    kept = sorted(values[:, 0].tolist())
    got = tally(values).channel(0).quantile(float(share))
    covers = [v for v in kept if sum(w <= v for w in kept) >= Fraction(float(share)) * len(kept)]
    assert got == min(covers)
