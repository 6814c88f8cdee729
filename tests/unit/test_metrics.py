"""densedepth/metrics.py against values worked out by hand, and against plain loops."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from builder.depth.densedepth.metrics import METRICS, DepthMetrics, depth_errors, eigen_crop

PERFECT = {name: float(name.startswith("delta")) for name in METRICS}


def maps(low: float = 0.0625, high: float = 9.5, shape: tuple[int, int] = (4, 6)):
    return hnp.arrays(np.float32, shape, elements=st.floats(low, high, width=32))


def by_loops(predicted, true, low, high) -> dict[str, float] | None:
    """The definitions, pixel by pixel."""
    n = absolute = square = relative = logs = log10 = 0.0
    close = [0, 0, 0]
    for p, t in zip(predicted.ravel().tolist(), true.ravel().tolist(), strict=True):
        if not math.isfinite(t) or t <= low or t >= high:
            continue
        p = min(max(p, low), high)
        n += 1
        absolute += abs(p - t) / t
        relative += (p - t) ** 2 / t
        square += (p - t) ** 2
        logs += (math.log(p) - math.log(t)) ** 2
        log10 += abs(math.log10(p) - math.log10(t))
        for power in (1, 2, 3):
            close[power - 1] += max(p / t, t / p) < 1.25**power
    if not n:
        return None
    values = (absolute / n, relative / n, math.sqrt(square / n), math.sqrt(logs / n), log10 / n)
    return dict(zip(METRICS, (*values, *(count / n for count in close)), strict=True))


def test_values_worked_out_by_hand():
    # ratios 1, 2, 1.5, 0.5 and 1.25, which is not below 1.25
    true = np.array([[1, 1, 2, 4, 4]], np.float64)
    predicted = np.array([[1, 2, 3, 2, 5]], np.float64)
    errors = depth_errors(predicted, true)
    assert errors["abs_rel"] == pytest.approx((0 + 1 + 0.5 + 0.5 + 0.25) / 5)
    assert errors["sq_rel"] == pytest.approx((0 + 1 + 1 / 2 + 4 / 4 + 1 / 4) / 5)
    assert errors["rmse"] == pytest.approx(math.sqrt((0 + 1 + 1 + 4 + 1) / 5))
    ln2, ln15, ln125 = 0.6931471805599453, 0.4054651081081644, 0.2231435513142098
    assert errors["rmse_log"] == pytest.approx(math.sqrt((2 * ln2**2 + ln15**2 + ln125**2) / 5))
    assert errors["log10"] == pytest.approx((2 * 0.30103 + 0.1760913 + 0.0969100) / 5, abs=1e-7)
    assert [errors[f"delta{i}"] for i in (1, 2, 3)] == [0.2, 0.6, 0.6]


def test_a_set_is_the_mean_over_images_and_not_over_pixels():
    metrics = DepthMetrics(max_depth_m=100)
    one = np.full((1, 1), 2.0)
    many = np.full((10, 10), 2.0)
    assert metrics.add(one * 2, one)["abs_rel"] == 1
    assert metrics.add(many, many) == PERFECT
    assert metrics.images == 2
    assert metrics.compute()["abs_rel"] == 0.5  # pooled it would be 1 / 101
    assert metrics.compute()["rmse"] == 1  # pooled: sqrt(4 / 101)


def test_unknown_and_out_of_range_pixels_have_no_influence():
    true = np.array([[0, np.nan, np.inf, -1, 0.5, 10, 12, 2]])
    metrics = DepthMetrics(0.5, 10)
    assert metrics.known(true).tolist() == [[False] * 7 + [True]]
    predicted = np.array([[np.nan, np.nan, 5, 5, 5, 5, 5, 3]])
    assert metrics.add(predicted, true)["abs_rel"] == 0.5
    assert metrics.add(predicted[:, :3], true[:, :3]) is None
    assert (metrics.images, metrics.without_truth) == (1, 1)


def test_a_depth_at_a_limit_is_unknown_in_its_own_precision():
    true = np.array([[0.1, 2.3, 1.0]], np.float32)  # 0.1 and 2.3 lie beside their doubles
    assert DepthMetrics(0.1, 2.3).known(true).tolist() == [[False, False, True]]


def test_predictions_are_clipped_to_the_range():
    true = np.array([[2.0, 5.0]])
    for predicted in ([[-3.0, np.inf]], [[0.0, 80.0]], [[1.0, 10.0]]):
        errors = DepthMetrics(1, 10).add(np.array(predicted), true)
        assert errors["abs_rel"] == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((480, 640), (slice(45, 471), slice(41, 601))),
        ((240, 320), (slice(22, 236), slice(20, 300))),  # halves round to even
        ((960, 1280), (slice(90, 942), slice(82, 1202))),
    ],
)
def test_eigen_crop_is_the_nyu_window_at_every_size(size, window):
    assert eigen_crop(*size) == window


def test_eigen_crop_leaves_the_border_out():
    true = np.full((480, 640), 2.0)
    predicted = true.copy()
    predicted[:45], predicted[471:], predicted[:, :41], predicted[:, 601:] = 9, 9, 9, 9
    assert DepthMetrics(eigen=True).add(predicted, true) == PERFECT
    assert DepthMetrics(eigen=True).known(true).sum() == 426 * 560
    assert DepthMetrics().add(predicted, true)["abs_rel"] > 0.5


def test_median_scaling_by_hand():
    true = np.array([[1.0, 2.0, 4.0, 0.0]])
    predicted = np.array([[10.0, 40.0, 40.0, 9999.0]])  # medians 2 and 40 of the known
    errors = DepthMetrics(median_scaling=True).add(predicted, true)
    assert errors["abs_rel"] == pytest.approx((0.5 + 0 + 0.5) / 3)


def test_what_can_not_be_measured_is_refused():
    ones = np.ones((2, 3))
    with pytest.raises(ValueError, match="No image with a known depth was added"):
        DepthMetrics().compute()
    with pytest.raises(ValueError, match=r"one size, got \(2, 3\) and \(3, 2\)"):
        DepthMetrics().add(ones, ones.T)
    with pytest.raises(ValueError, match="one size"):
        DepthMetrics().add(ones[None], ones[None])
    with pytest.raises(ValueError, match="is NaN at pixels"):
        DepthMetrics().add(ones * np.nan, ones)
    with pytest.raises(ValueError, match=r"median of the prediction is 0\.0"):
        DepthMetrics(median_scaling=True).add(ones * 0, ones)
    with pytest.raises(ValueError, match="got 10 and 1"):
        DepthMetrics(10, 1)


@given(maps(-1, 12), maps(-1, 12))
def test_equal_to_plain_loops(predicted, true):
    low, high = 0.125, 10  # limits that float32 holds: a map is compared in its own precision
    errors = DepthMetrics(low, high).add(predicted, true)
    expected = by_loops(predicted, true, low, high)
    assert (errors is None) == (expected is None)
    if expected is not None:
        assert errors == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(maps())
def test_a_perfect_prediction_has_no_error(true):
    assert DepthMetrics().add(true, true) == PERFECT
    assert DepthMetrics(median_scaling=True).add(true, true) == pytest.approx(PERFECT, abs=1e-6)


@given(maps(), maps(0.5, 9.5), st.floats(1e-3, 1e3))
def test_median_scaling_forgets_the_scale(predicted, true, factor):
    def worst_ratio(scaled):
        return np.maximum(scaled / true, true / scaled)

    exact = predicted.astype(np.float64)
    scaled = (exact * np.median(true) / np.median(exact)).clip(1e-3, 10)
    for power in (1, 2, 3):  # a ratio on the edge may fall to either side when rounded
        assume(np.abs(worst_ratio(scaled) - 1.25**power).min() > 1e-6)
    plain = DepthMetrics(median_scaling=True).add(exact, true)
    assert DepthMetrics(median_scaling=True).add(exact * factor, true) == pytest.approx(
        plain, rel=1e-9, abs=1e-9
    )


@given(st.lists(st.tuples(maps(), maps()), min_size=1, max_size=6), st.randoms())
def test_order_and_merging_change_no_bit(pairs, rng: random.Random):
    together, left, right = DepthMetrics(), DepthMetrics(), DepthMetrics()
    for predicted, true in pairs:
        together.add(predicted, true)
    rng.shuffle(pairs)
    for predicted, true in pairs:
        rng.choice((left, right)).add(predicted, true)
    left.merge(right)
    assert left.images == together.images
    assert left.compute() == together.compute()


@given(maps(), maps())
def test_errors_are_ordered_as_their_definitions_demand(predicted, true):
    errors = DepthMetrics().add(predicted, true)
    assert 0 <= errors["delta1"] <= errors["delta2"] <= errors["delta3"] <= 1
    assert errors["log10"] * math.log(10) <= errors["rmse_log"] * (1 + 1e-9)
    assert all(value >= 0 for value in errors.values())
