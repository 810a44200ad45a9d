import numpy as np
import pytest

from steering import UserError
from steering.theory_checks.scaling.fit import by_axis, fit, floor, gap, misread, paired_gap
from steering.theory_checks.scaling.points import ALL, SIX, Point, named, published


def line(method, exponent, computes, noise=0.0, rng=None, scale=2.0, level=0.0):
    """Points of a law."""
    factors = np.exp(noise * rng.standard_normal(len(computes))) if rng is not None else np.ones(len(computes))
    return [
        Point(method, float(c), float((level + scale * c**-exponent) * f))
        for c, f in zip(computes, factors, strict=True)
    ]


TEN = np.geomspace(1e2, 1e5, 10)


def test_the_published_points_give_the_published_exponents():
    """0.116 and 0.127 are printed in the figure; the readings are rounded to a tenth of a point, and give 0.1155."""
    six, every = (fit(named(published(), name)) for name in (SIX, ALL))
    for method, scale, printed, of_all in (("OpenCLIP", 5.77, 0.116, 0.108), ("DRRho-CLIP", 7.15, 0.127, 0.118)):
        assert six[method].exponent.value == pytest.approx(printed, abs=1e-3)
        assert six[method].scale == pytest.approx(scale, rel=0.025)
        assert every[method].exponent.value == pytest.approx(of_all, abs=5e-4)


def test_an_exact_law_is_fitted_exactly_with_an_interval_of_no_width():
    law = fit(line("a", 0.3, TEN))["a"]
    assert law.exponent.value == pytest.approx(0.3) and law.scale == pytest.approx(2)
    assert law.exponent.high - law.exponent.low < 1e-9
    assert law.error(1e3) == pytest.approx(2 * 1e3**-0.3)


def test_the_exponent_does_not_depend_on_the_units():
    rng = np.random.default_rng(0)
    points = line("a", 0.3, TEN, 0.1, rng)
    scaled = [Point(p.method, 7e9 * p.compute, 100 * p.error) for p in points]
    first, second = fit(points)["a"].exponent, fit(scaled)["a"].exponent
    assert first.value == pytest.approx(second.value) and first.low == pytest.approx(second.low)


def test_the_gap_is_paired_where_settings_are_shared():
    """Both methods carry the same noise, ten times their difference: the gap is exact all the same."""
    rng = np.random.default_rng(0)
    first = line("a", 0.30, TEN, 0.5, rng)
    second = [Point("b", p.compute, p.error * p.compute**-0.02) for p in first]
    laws = fit([*first, *second])
    bootstrapped = gap(laws["b"], laws["a"], 10)
    assert bootstrapped.value == pytest.approx(0.02) and bootstrapped.high - bootstrapped.low < 1e-9
    assert laws["a"].exponent.high - laws["a"].exponent.low > 0.1
    paired = paired_gap([*first, *second], "b", "a")
    assert paired is not None and paired.value == pytest.approx(0.02) and paired.high - paired.low < 1e-9
    two = [p for p in (*first, *second) if p.compute < TEN[2]]
    assert paired_gap(two, "b", "a") is None


def test_all_points_of_a_run_are_drawn_together():
    """Three runs of exact laws that differ: the draws see three exponents, however many points a run has."""
    points = [
        Point("a", p.compute, p.error, run=f"run {exponent}")
        for exponent in (0.2, 0.3, 0.4)
        for p in line("a", exponent, TEN, scale=2.0 * 3e3**exponent)
    ]
    law = fit(points)["a"]
    assert law.exponent.value == pytest.approx(0.3)
    assert np.nanmin(law.draws) == pytest.approx(0.2) and np.nanmax(law.draws) == pytest.approx(0.4)


def test_the_axes_are_separated():
    """b's lead widens with the model's size alone."""
    points = []
    for model, flops in (("s", 1.0), ("m", 4.0), ("l", 20.0)):
        for samples in (1e3, 1e4, 1e5):
            error = (flops * samples) ** -0.2
            points.append(Point("a", flops * samples, error, model, samples))
            points.append(Point("b", flops * samples, error * flops**-0.05, model, samples))
    samples, size = by_axis(points, "b", "a", error=None)
    assert samples.value.value == pytest.approx(0, abs=1e-9) and size.value.value == pytest.approx(0.05)
    assert by_axis([p for p in points if p.model == "s"], "b", "a", error=None) == []


def test_the_published_gap_comes_with_the_models_size_and_not_with_samples():
    samples, size = by_axis(published(), "DRRho-CLIP", "OpenCLIP", error=0.003)
    assert samples.value.low < 0 < samples.value.high
    assert size.value.low > 0 and size.read is not None and size.read[0] > 0


def test_six_points_cannot_tell_the_published_gap_from_zero():
    six, every = (fit(named(published(), name)) for name in (SIX, ALL))
    few, many = gap(six["DRRho-CLIP"], six["OpenCLIP"], 6), gap(every["DRRho-CLIP"], every["OpenCLIP"], 11)
    assert few.low < 0 < few.value < few.high
    assert 0 < many.low < many.value == pytest.approx(0.010, abs=5e-4)


def test_a_larger_reading_error_widens_the_interval_and_none_closes_it():
    points = [*line("a", 0.3, TEN), *line("b", 0.4, TEN)]
    none, small, large = (misread(points, "b", "a", error) for error in (0.0, 1e-4, 1e-3))
    assert none and small and large and none == pytest.approx((0.1, 0.1))
    assert none[1] < small[1] < large[1]


def test_a_floor_is_identified_where_the_data_show_it_and_not_where_they_do_not():
    rng = np.random.default_rng(0)
    computes = np.geomspace(1e1, 1e6, 14)
    shown = floor(line("a", 0.5, computes, 0.01, rng, level=0.05))
    assert shown is not None and shown.identified and shown.level.low > 0
    assert shown.level.value == pytest.approx(0.05, rel=0.03)
    assert shown.exponent.value == pytest.approx(0.5, abs=0.05)
    for method in ("OpenCLIP", "DRRho-CLIP"):
        hidden = floor([point for point in published() if point.method == method])
        assert hidden is not None and not hidden.identified
    none = floor(line("a", 0.3, np.geomspace(1e1, 1e6, 6)))
    assert none is not None and none.level.high < 0.02 * 2 * 1e6**-0.3


def test_no_floor_is_tried_over_too_little_compute():
    assert floor(line("a", 0.3, np.geomspace(100, 1000, 8))) is None
    assert floor(line("a", 0.3, np.geomspace(100, 1e6, 4))) is None


def test_two_computes_make_no_law():
    with pytest.raises(UserError, match="a needs at least 3 different computes, got 2"):
        fit(line("a", 0.3, [1, 2]))


@pytest.mark.slow
@pytest.mark.parametrize("number", [6, 11])
def test_the_bootstrap_covers_the_true_exponent(number):
    """Nominal 95 %; over six points rather more."""
    rng, computes = np.random.default_rng(0), np.geomspace(5e9, 2e11, number)
    hits = 0
    for repetition in range(300):
        exponent = fit(line("a", 0.12, computes, 0.03, rng), seed=repetition)["a"].exponent
        hits += exponent.low <= 0.12 <= exponent.high
    assert 0.92 < hits / 300 and (number == 6 or hits / 300 < 0.99)
