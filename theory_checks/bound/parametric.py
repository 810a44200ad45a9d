"""A linear model with Gaussian noise: where steering costs instead of helps.

``y = x . theta* + e`` with x and e standard normal in d = 5 dimensions, loss half the squared error. The excess risk is
``|theta - theta*|^2 / 2`` exactly. The reference lies at a distance r from theta*, inside the class.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from scipy.special import softmax

from steering.rules import KL
from steering.theory_checks.bound.atoms import Array
from steering.training.seeds import derive

DIMENSION = 5


def matched_at(distance: float) -> float:
    """n_eq, at which ERM is as good as the reference: ``d / (2 n) = r^2 / 2``."""
    return DIMENSION / distance**2


def limit(distance: float, rho: float) -> float:
    """n times the excess risk of DRRho as n grows: ``d/2 + rho b' H^-1 b``, b = Cov(gradient, difference)/sd.

    At theta* the gradient is -e x, the difference of losses e x.delta - (x.delta)^2 / 2, and the Hessian H the
    identity: b'b = r^2 / (r^2 + r^4 / 2). A reference at theta* itself has no such limit: all differences vanish.
    """
    return DIMENSION / 2 + rho / (1 + distance**2 / 2)


def least_squares(x: Array, y: Array) -> Array:
    """The coefficients of ERM."""
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0], dtype=np.float64)


def steered(x: Array, y: Array, reference: Array, rho: float) -> Array:
    """The minimiser of the DRRho risk in the KL ball of radius rho / n, by L-BFGS on the engine's own weights.

    The risk is convex, with a kink at the reference, where it is zero; a descent that ends above returns the reference.
    """
    n, rule = len(y), KL(rho=rho)
    baseline = np.square(y - x @ reference) / 2
    mask = torch.ones(1, n, dtype=torch.bool)

    def risk(theta: Array) -> tuple[float, Array]:
        residuals = y - x @ theta
        excess = torch.from_numpy(np.square(residuals) / 2 - baseline)[None]
        weights = rule.weights(excess, rule.dual(excess, mask, n))[0].numpy()
        return float(weights @ excess[0].numpy()) / n, -(weights * residuals) @ x / n

    result = _minimise(risk, least_squares(x, y))
    return result.x if result.fun < 0 else reference


def divergence_to_balance(x: Array, y: Array, theta: Array) -> float:
    """Least KL(p || uniform) with ``sum p_i gradient_i(theta) = 0``; DRRho returns theta if it is at most rho / n.

    By its dual ``-min log mean exp(lambda . gradient)``, an empirical likelihood test (Owen 2001) with KL in place of
    the likelihood. Very large where no weights balance the gradients.
    """
    gradients = -(y - x @ theta)[:, None] * x

    def dual(tilt: Array) -> tuple[float, Array]:
        exponents = gradients @ tilt
        return float(np.logaddexp.reduce(exponents)), softmax(exponents) @ gradients

    return float(np.log(len(y))) - _minimise(dual, np.zeros(x.shape[1])).fun


@dataclass(frozen=True)
class LinearFits:
    """Fits to the same samples, ``[repetitions]`` each."""

    erm: Array  # excess risk of ERM
    drrho: dict[float, Array]  # of DRRho, by rho
    foretold: (
        Array  # whether ``divergence_to_balance`` is right about DRRho's output being the reference, ``[., rhos]``
    )


def fit(distance: float, n: int, rhos: Sequence[float], repetitions: int, seed: int) -> LinearFits:
    """Fits ERM and DRRho to fresh samples of size n."""
    reference = distance * np.eye(DIMENSION)[0]  # theta* being the origin; the direction does not matter
    drrho, foretold, erm = [], [], []
    for x, y in _samples(n, repetitions, seed, "linear"):
        thetas = np.array([steered(x, y, reference, rho) for rho in rhos])
        erm.append(np.square(least_squares(x, y)).sum() / 2)
        drrho.append(np.square(thetas).sum(-1) / 2)
        exact = divergence_to_balance(x, y, reference) <= np.array(rhos) / n
        foretold.append((thetas == reference).all(-1) == exact)
    return LinearFits(np.array(erm), dict(zip(rhos, np.array(drrho).T, strict=True)), np.array(foretold))


def balances(n: int, repetitions: int, seed: int) -> Array:
    """n times the divergence that balances the gradients at theta*, in fresh samples, ``[repetitions]``."""
    samples = _samples(n, repetitions, seed, "balance")
    return n * np.array([divergence_to_balance(x, y, np.zeros(DIMENSION)) for x, y in samples])


def _samples(n: int, repetitions: int, seed: int, stream: str) -> Iterator[tuple[Array, Array]]:
    """Inputs ``[n, d]`` and answers ``[n]`` of every repetition, in coordinates whose origin is theta*."""
    for repetition in range(repetitions):
        rng = np.random.default_rng(derive(seed, stream, n, repetition))
        yield rng.standard_normal((n, DIMENSION)), rng.standard_normal(n)


def _minimise(function: Callable[[Array], tuple[float, Array]], start: Array) -> OptimizeResult:
    options = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 200}
    return minimize(function, start, jac=True, method="L-BFGS-B", options=options)
