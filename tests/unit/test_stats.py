"""stats: figures against NumPy, fractions and the statistics module."""

from __future__ import annotations

import json
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from builder.record.stats import Statistics, Summary, Tally, histogram, unknown_depth


def tally_of(values: list[int], levels: int = 256) -> Tally:
    tally = Tally(levels)
    tally.add(np.array(values, np.int64))
    return tally


def test_figures_equal_the_statistics_module() -> None:
    values = np.random.default_rng(0).integers(0, 65536, 4321).tolist()
    summary = tally_of(values, 65536).channel(0)
    assert (summary.n, summary.total) == (len(values), sum(values))
    assert summary.total_squares == sum(v * v for v in values)
    assert (summary.low, summary.high) == (min(values), max(values))
    assert summary.mean == float(Fraction(sum(values), len(values)))
    assert summary.std == pytest.approx(statistics.pstdev(values), rel=1e-15)


def test_channels_are_kept_apart() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (31, 17, 3), np.uint8)
    tally = Tally(256, 3)
    tally.add(pixels)
    for channel, summary in enumerate(tally.summaries()):
        values = pixels[..., channel]
        np.testing.assert_array_equal(
            tally.counts[channel], np.histogram(values, np.arange(257))[0]
        )
        assert summary.mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-14)
        assert summary.std == pytest.approx(values.std(dtype=np.float64), rel=1e-14)


def test_values_below_first_are_left_out() -> None:
    summary = tally_of([0, 0, 5, 9, 9]).channel(0, first=1)
    assert (summary.n, summary.total, summary.low, summary.high) == (3, 23, 5, 9)
    assert tally_of([0, 0, 5]).channel(0).low == 0


def test_no_value_has_no_mean() -> None:
    summary = tally_of([0, 0]).channel(0, first=1)
    assert (summary.n, summary.total, summary.low, summary.high) == (0, 0, 0, 0)
    assert math.isnan(summary.mean)
    assert math.isnan(summary.std)


def test_a_constant_has_no_spread_to_the_bit() -> None:
    summary = Summary(np.eye(1, 65536, 65535, dtype=np.int64)[0] * (2**62))
    assert (summary.mean, summary.std) == (65535.0, 0.0)


def test_sums_beyond_64_bits_stay_exact() -> None:
    counts = np.zeros(65536, np.int64)
    counts[[65534, 65535]] = 2**61, 2**61 + 1
    summary = Summary(counts)
    n, total = 2**62 + 1, 65534 * 2**61 + 65535 * (2**61 + 1)
    assert (summary.n, summary.total) == (n, total)
    assert summary.total_squares == 65534**2 * 2**61 + 65535**2 * (2**61 + 1)
    assert summary.total_squares > 2**64
    exact = Fraction(summary.total_squares, n) - Fraction(total, n) ** 2
    assert summary.std == pytest.approx(math.sqrt(exact), rel=1e-15)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0])
def test_quantiles_are_values_that_occur_as_in_numpy(share: float) -> None:
    values = np.random.default_rng(3).integers(0, 2000, 777)
    wanted = int(np.quantile(values, share, method="inverted_cdf"))
    assert tally_of(values.tolist(), 2000).channel(0).quantile(share) == wanted


def test_a_quantile_leaves_values_below_first_out() -> None:
    summary = tally_of([0] * 100 + [3, 4, 5]).channel(0, first=1)
    assert [summary.quantile(s) for s in (0.0, 0.5, 1.0)] == [3, 4, 5]


def test_a_tally_travels_as_sparse_json() -> None:
    tally = tally_of([0, 7, 7, 255])
    content = json.loads(json.dumps(tally.to_json()))
    assert content == {"levels": 256, "channels": [{"values": [0, 7, 255], "counts": [1, 2, 1]}]}
    np.testing.assert_array_equal(Tally.from_json(content).counts, tally.counts)


def test_merging_other_shapes_is_an_error() -> None:
    with pytest.raises(ValueError):
        Tally(256).merge(Tally(255))
    with pytest.raises(ValueError):
        Tally(256).add(np.array([256]))


SIZE = 24


def records(count: int, seed: int = 0) -> list[tuple]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        mask = np.where(rng.random((SIZE, SIZE)) < rng.random(), 255, 0).astype(np.uint8)
        depth = rng.integers(0, 65536, (SIZE, SIZE)).astype(np.uint16)
        depth[rng.random(depth.shape) < 0.2] = 0
        box = rng.integers(0, SIZE + 1, 4).tolist()
        made.append((pixels, mask, depth, box, {"fg_bg": int(rng.integers(1, 999)), "mask": 10}))
    return made


def counted(made: list[tuple]) -> Statistics:
    total = Statistics(SIZE)
    for pixels, *rest in made:
        total.add(histogram(Image.fromarray(pixels)), *rest)
    return total


def test_statistics_of_records_equal_numpy_on_all_their_pixels() -> None:
    made = records(9)
    total = counted(made)
    pixels, masks, depths, boxes, _ = ([record[i] for record in made] for i in range(5))
    for channel, summary in enumerate(total.tallies["fg_bg"].summaries()):
        values = np.stack(pixels)[..., channel].astype(np.int64)
        assert (summary.n, summary.total) == (values.size, int(values.sum()))
        assert summary.mean == pytest.approx(values.mean(), rel=1e-14)
        assert summary.std == pytest.approx(values.std(), rel=1e-14)
    mask = total.tallies["mask"].channel(0)
    assert mask.mean == pytest.approx(np.stack(masks).mean(dtype=np.float64), rel=1e-14)
    assert mask.n == 9 * SIZE * SIZE
    known = np.stack(depths)[np.stack(depths) > 0].astype(np.int64)
    depth = total.tallies["depth"].channel(0, first=1)
    assert (depth.n, depth.total) == (known.size, int(known.sum()))
    assert depth.total_squares == int((known**2).sum())
    assert (depth.low, depth.high) == (known.min(), known.max())
    covered = total.tallies["mask_px"].channel(0)
    assert covered.n == 9
    assert covered.total == sum(int((m > 0).sum()) for m in masks)
    for i, summary in enumerate(total.tallies["bbox"].summaries()):
        assert summary.total == sum(box[i] for box in boxes)
    assert total.rows == 9
    assert total.size_bytes == {"fg_bg": sum(r[4]["fg_bg"] for r in made), "mask": 90}


def test_a_set_without_depth_counts_none() -> None:
    pixels, mask, _, box, _ = records(1)[0]
    total = Statistics(SIZE)
    total.add(histogram(Image.fromarray(pixels)), mask, None, box, {})
    assert total.tallies["depth"].counts.sum() == 0


def test_shards_merge_to_the_bit_in_any_order() -> None:
    made = records(8)
    whole = counted(made).to_json()
    parts = [counted(made[:1]), counted(made[1:6]), counted([]), counted(made[6:])]
    for order in (parts, parts[::-1], parts[2:] + parts[:2]):
        total = Statistics(SIZE)
        for part in order:
            total.merge(Statistics.from_json(json.loads(json.dumps(part.to_json()))))
        assert total.to_json() == whole


def test_nothing_counted_has_no_figures() -> None:
    nothing = Tally(10).channel(0)
    assert nothing.n == 0
    assert all(np.isnan([nothing.mean, nothing.std, nothing.quantile(0.5)]))


def test_unknown_depth_is_said_with_the_parts_that_have_none():
    def counted(*numbers: int) -> Statistics:
        statistics = Statistics(4)
        statistics.tallies["depth"].add(np.array(numbers, np.uint16))
        return statistics

    assert unknown_depth({"train": counted(5, 9), "test": counted(7)}) is None
    assert unknown_depth({"train": counted(5, 0, 9), "test": counted(7)}) == (
        "Depth is unknown (0) in 25.00% of the pixels."
    )
    assert unknown_depth({"train": counted(5, 9), "test": counted(0, 0)}) == (
        "Depth is unknown (0) in 50.00% of the pixels, and in all of test."
    )
