"""Predictions of ridge regression for each sample, by a model that was fitted to all other samples."""

import numpy as np

from wsss.arrays import Bool, Float

# Penalties that are tried, per sample and for standardised columns
_PENALTIES = 10.0 ** np.arange(-2, 3.1, 0.5)


def leave_one_out(x: Float[np.ndarray, "n d"], y: Bool[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Predict each row of `y` from the row of `x`, by ridge regression on all other rows.

    The columns of x are standardised: X = U diag(s) V^T. With the penalty p n and the gains g_k = s_k^2 / (s_k^2 + p n), the fit is
    U diag(g) U^T (y - mean y) + mean y. A row without which the model had been fitted has the prediction

        z_i = y_i - (y_i - fit_i) / (1 - h_i),    h_i = sum_k g_k U_ik^2 + 1 / n

    so no model has to be fitted n times (the identity of the PRESS statistic; Allen, Technometrics 1974). The columns are standardised once, over all
    rows. The penalty is that with the smallest squared error over all rows and columns of y.

    Args:
        x: descriptions of the samples; constant columns have no effect.
        y: n >= 2 targets.

    Returns:
        Predictions, roughly in [0, 1]: 0.5 is halfway between absent and present.
    """
    n = len(x)
    centred = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    spread = centred.std(0)
    standard = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)
    u, squares = _left_vectors(standard)
    target = y.astype(np.float64)
    mean = target.mean(0)
    projected = u.T @ (target - mean)
    best, least = np.broadcast_to(mean, target.shape), np.inf
    for penalty in _PENALTIES:
        gain = squares / (squares + penalty * n)
        leverage = (u**2 @ gain) + 1 / n
        fitted = (u * gain) @ projected + mean
        residual = (target - fitted) / (1 - leverage)[:, None]
        if (error := float((residual**2).sum())) < least:
            best, least = target - residual, error
    return best


def _left_vectors(x: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n k"], Float[np.ndarray, " k"]]:
    """Left singular vectors with positive singular values, and the squares of these, from the smaller of the two Gram matrices."""
    n, d = x.shape
    squares, vectors = np.linalg.eigh(x @ x.T if n <= d else x.T @ x)
    kept = squares > 1e-10 * max(float(squares.max(initial=0)), 1e-300)
    squares, vectors = squares[kept], vectors[:, kept]
    return (vectors if n <= d else x @ vectors / np.sqrt(squares)), squares
