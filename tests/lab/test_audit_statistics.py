"""The tests' arithmetic against scipy, and their error rates."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from paceline.lab.audit_statistics import (
    chi2_sf,
    g_test,
    g_test_of,
    holm,
    least_total_variation,
    noncentral_sf,
)


@pytest.mark.parametrize("df", [1, 4, 63, 400])
@pytest.mark.parametrize("scale", [0.2, 1.0, 1.7])
def test_tails_equal_scipys(df: int, scale: float) -> None:
    x = df * scale
    assert chi2_sf(x, df) == pytest.approx(stats.chi2.sf(x, df), rel=1e-9)
    for nc in (0.5, 20.0, 300.0):
        want = stats.ncx2.sf(x, df, nc)
        assert noncentral_sf(x, df, nc) == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_statistic_equals_scipys_without_the_correction() -> None:
    counts, p = [30, 50, 120], [0.2, 0.3, 0.5]
    want = stats.power_divergence(counts, np.array(p) * 200, lambda_="log-likelihood")
    williams = 1 + (sum(1 / x for x in p) - 1) / (6 * 200 * 2)
    got = g_test(counts, p)
    assert got.statistic * williams == pytest.approx(want.statistic)
    assert got.bins == 3
    assert got.samples == 200


def test_small_bins_are_pooled() -> None:
    p = [0.9, 0.05, 0.03, 0.01, 0.01]
    got = g_test([90, 5, 3, 1, 1], p)
    assert got.bins == 3  # 0.9, 0.05, and the other three together
    assert g_test([1, 0], [0.999, 0.001]).p_value == 1.0


def test_an_impossible_outcome_fails() -> None:
    assert g_test_of({"a": 50, "b": 49, "c": 1}, {"a": 0.5, "b": 0.5}).p_value == 0.0


def test_p_values_are_calibrated() -> None:
    """Under the null, p-values are close to uniform, in the tail above all."""
    rng = np.random.default_rng(0)
    law = rng.dirichlet(np.ones(60) * 0.5)
    p = np.array([g_test(rng.multinomial(800, law), law).p_value for _ in range(2000)])
    for alpha in (0.5, 0.1, 0.01):
        share = float((p < alpha).mean())
        assert stats.binomtest(int((p < alpha).sum()), 2000, alpha).pvalue > 1e-3, share


def test_power_is_as_stated() -> None:
    """A law at the least detectable distance is rejected about as often as promised."""
    rng = np.random.default_rng(1)
    n, bins, alpha, power = 2000, 20, 0.01, 0.9
    d = least_total_variation(n, bins, alpha, power)
    law = np.full(bins, 1 / bins)
    other = law + np.resize([2 * d / bins, -2 * d / bins], bins)
    tests = [g_test(rng.multinomial(n, other), law) for _ in range(500)]
    assert np.mean([t.p_value < alpha for t in tests]) == pytest.approx(power, abs=0.05)
    assert tests[0].least_total_variation > d  # at the stricter default alpha


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
