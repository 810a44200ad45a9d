"""A linear model with Gaussian noise: where steering costs instead of helps.

``y = x . theta* + e`` with x and e standard normal in d = 5 dimensions, loss half the squared error. The excess risk is
``|theta - theta*|^2 / 2`` exactly. The reference lies at a distance r from theta*, inside the class.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from scipy.special import softmax
from scipy.stats import chi2

from steering.rules import KL
from steering.theory_checks.bound.atoms import Array
from steering.training.seeds import derive

DIMENSION = 5


@dataclass(frozen=True)
class Linear:
    """Samples of the linear model, in coordinates whose origin is theta*."""

    distance: float  # r, of the reference from theta*

    @property
    def reference(self) -> Array:
        """The reference's coefficients; the direction does not matter."""
        return np.array([self.distance] + [0.0] * (DIMENSION - 1))

    @property
    def matched_at(self) -> float:
        """n_eq, at which ERM is as good as the reference: ``d / (2 n) = r^2 / 2``."""
        return DIMENSION / self.distance**2 if self.distance else np.inf

    def limit(self, rho: float) -> float:
        """n times the excess risk of DRRho as n grows: ``d/2 + rho b' H^-1 b``, b = Cov(gradient, difference)/sd.

        At theta* the gradient is -e x, the difference of losses e x.delta - (x.delta)^2 / 2, and the Hessian H the
        identity: b'b = r^2 / (r^2 + r^4 / 2). A reference at theta* itself has no such limit: all
        differences vanish there.
        """
        return DIMENSION / 2 + rho / (1 + self.distance**2 / 2)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Inputs ``[n, d]`` and answers ``[n]``."""
        return rng.standard_normal((n, DIMENSION)), rng.standard_normal(n)


def least_squares(x: Array, y: Array) -> Array:
    """The coefficients of ERM."""
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0], dtype=np.float64)


def steered(x: Array, y: Array, reference: Array, rho: float) -> Array:
    """The minimiser of the DRRho risk in the KL ball of radius rho / n, by L-BFGS on the engine's own weights.

    The risk is convex, with a kink at the reference, where it is zero. A descent from the least squares that ends
    nowhere below zero returns the reference itself.
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
    """Least KL(p || uniform) with ``sum p_i gradient_i(theta) = 0``, on its dual.

    The dual is ``-min log mean exp(lambda . gradient)``: an empirical likelihood test (Owen 2001) with KL in place of
    the likelihood. At the reference it decides: DRRho returns the reference if and only if this is at most rho / n.
    Very large where no weights balance the gradients.
    """
    gradients = -(y - x @ theta)[:, None] * x

    def dual(tilt: Array) -> tuple[float, Array]:
        exponents = gradients @ tilt
        return float(np.logaddexp.reduce(exponents)), softmax(exponents) @ gradients

    return float(np.log(len(y))) - _minimise(dual, np.zeros(x.shape[1])).fun


def collapse_law(rho: float) -> float:
    """The probability that DRRho returns a reference that is theta* exactly, as n grows: P(chi2_d <= 2 rho)."""
    return float(chi2.cdf(2 * rho, DIMENSION))


@dataclass(frozen=True)
class LinearFits:
    """Fits to the same samples, ``[repetitions]`` each."""

    erm: Array  # excess risk of ERM
    drrho: dict[float, Array]  # of DRRho, by rho
    touching: dict[float, Array]  # whether DRRho's output was the reference, by rho
    exact: dict[float, Array]  # whether ``divergence_to_balance`` says that it has to be


def fit(problem: Linear, n: int, rhos: tuple[float, ...], repetitions: int, seed: int) -> LinearFits:
    """Fits ERM and DRRho to fresh samples of size n."""
    reference, drrho, touching, exact, erm = problem.reference, [], [], [], []
    for x, y in _samples(problem, n, repetitions, seed, "linear"):
        thetas = np.array([steered(x, y, reference, rho) for rho in rhos])
        erm.append(_excess(least_squares(x, y)))
        drrho.append(_excess(thetas))
        touching.append((thetas == reference).all(-1))
        exact.append(divergence_to_balance(x, y, reference) <= np.array(rhos) / n)
    by_rho = (dict(zip(rhos, np.array(rows).T, strict=True)) for rows in (drrho, touching, exact))
    return LinearFits(np.array(erm), *by_rho)


def balances(problem: Linear, n: int, repetitions: int, seed: int) -> Array:
    """n times the divergence that balances the reference's gradients, in fresh samples, ``[repetitions]``."""
    samples = _samples(problem, n, repetitions, seed, "balance")
    return n * np.array([divergence_to_balance(x, y, problem.reference) for x, y in samples])


def _samples(problem: Linear, n: int, repetitions: int, seed: int, stream: str) -> Iterator[tuple[Array, Array]]:
    for repetition in range(repetitions):
        yield problem.draw(n, np.random.default_rng(derive(seed, stream, n, repetition)))


def _minimise(function: Callable[[Array], tuple[float, Array]], start: Array) -> OptimizeResult:
    options = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 200}
    return minimize(function, start, jac=True, method="L-BFGS-B", options=options)


def _excess(theta: Array) -> Array:
    return np.square(theta).sum(-1) / 2
