"""Leave-one-out predictions against models that are fitted again without each sample."""

import numpy as np
import pytest

from wsss.ops.leave_one_out import _PENALTIES, leave_one_out


def fitted_again(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same, slowly: for each penalty and each row, a ridge regression with intercept on all other rows."""
    n, d = x.shape
    spread = x.std(0)
    standard = np.where(spread > 0, (x - x.mean(0)) / np.where(spread > 0, spread, 1), 0)
    best, least = None, np.inf
    for penalty in _PENALTIES:
        predicted = np.empty(y.shape)
        for row in range(n):
            rest = np.arange(n) != row
            design = np.c_[standard[rest], np.ones(n - 1)]
            shrink = np.diag([*[penalty * n] * d, 0])
            weights = np.linalg.solve(design.T @ design + shrink, design.T @ y[rest])
            predicted[row] = np.r_[standard[row], 1] @ weights
        if (error := ((y - predicted) ** 2).sum()) < least:
            best, least = predicted, error
    return best


@pytest.mark.parametrize(("n", "d"), [(12, 3), (9, 20)])
def test_it_is_what_a_fit_without_the_sample_predicts(n, d):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, d))
    x[:, 0] = 3  # a constant column has no effect
    y = rng.random((n, 2)) < 0.5
    np.testing.assert_allclose(leave_one_out(x, y), fitted_again(x, y.astype(float)), atol=1e-8)


def test_noise_predicts_the_frequency_of_the_others():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 2)), rng.random((400, 1)) < 0.3
    assert np.abs(leave_one_out(x, y) - y.mean()).max() < 0.1
