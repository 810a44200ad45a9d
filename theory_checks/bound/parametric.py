"""A linear model with Gaussian noise: where steering costs instead of helps.

``y = x . theta* + e`` with x and e standard normal in d = 5 dimensions, loss half the squared error. The excess risk is
``|theta - theta*|^2 / 2`` exactly. The reference lies at a distance r from theta*, inside the class.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import chi2

from steering.rules import KL
from steering.theory_checks.bound.atoms import Array
from steering.training.seeds import derive

DIMENSION = 5


@dataclass(frozen=True)
class Linear:
    """Samples of the linear model, in coordinates whose origin is theta*.

    Args:
        distance: r, of the reference from theta*.
    """

    distance: float

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

    def draw(self, n: int, random: np.random.Generator) -> tuple[Array, Array]:
        """Inputs ``[n, d]`` and answers ``[n]``."""
        return random.standard_normal((n, DIMENSION)), random.standard_normal(n)


def least_squares(x: Array, y: Array) -> Array:
    """What ERM finds."""
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0], dtype=np.float64)


def steered(x: Array, y: Array, reference: Array, rho: float) -> Array:
    """The minimiser of the DRRho risk in the KL ball of radius rho / n, by L-BFGS on the engine's own weights.

    The risk is convex, with a kink at the reference, where it is zero. A descent from the least squares that finds
    nothing below zero returns the reference itself.
    """
    n, rule = len(y), KL(rho=rho)
    baseline = np.square(y - x @ reference) / 2
    mask = torch.ones(1, n, dtype=torch.bool)

    def risk(theta: Array) -> tuple[float, Array]:
        left = y - x @ theta
        excess = torch.from_numpy(np.square(left) / 2 - baseline)[None]
        weights = rule.weights(excess, rule.dual(excess, mask, n))[0].numpy()
        return float(weights @ excess[0].numpy()) / n, -(weights * left) @ x / n

    options = {"gtol": 1e-9, "ftol": 1e-15, "maxiter": 200}
    found = minimize(risk, least_squares(x, y), jac=True, method="L-BFGS-B", options=options)
    return found.x if found.fun < 0 else reference


def divergence_to_balance(x: Array, y: Array, theta: Array) -> float:
    """Least KL(p || uniform) with ``sum p_i gradient_i(theta) = 0``, by Newton's method on its dual.

    The dual is ``-min log mean exp(lambda . gradient)``: an empirical likelihood test (Owen 2001) with KL in place of
    the likelihood. At the reference it decides: DRRho returns the reference if and only if this is at most rho / n.
    """
    gradients = -(y - x @ theta)[:, None] * x
    tilt = np.zeros(gradients.shape[1])

    def value(tilt: Array) -> float:
        return float(np.logaddexp.reduce(gradients @ tilt) - np.log(len(y)))

    for _ in range(50):
        p = np.exp(gradients @ tilt - np.logaddexp.reduce(gradients @ tilt))
        slope = p @ gradients
        if np.abs(slope).max() < 1e-10:
            break
        curvature = (gradients * p[:, None]).T @ gradients - np.outer(slope, slope)
        step = np.linalg.lstsq(curvature, slope, rcond=None)[0]
        size = 1.0
        while value(tilt - size * step) > value(tilt) - 1e-4 * size * float(slope @ step) and size > 1e-8:
            size /= 2
        tilt = tilt - size * step
    return -value(tilt)


def collapse_law(rho: float) -> float:
    """The probability that DRRho returns a reference that is theta* exactly, as n grows: P(chi2_d <= 2 rho)."""
    return float(chi2.cdf(2 * rho, DIMENSION))


@dataclass(frozen=True)
class Fits:
    """What was found on the same samples, ``[repetitions]`` each.

    Attributes:
        erm: excess risk of ERM.
        drrho: of DRRho, by rho.
        touching: whether DRRho's output was the reference, by rho.
        exact: whether ``divergence_to_balance`` says that it has to be.
    """

    erm: Array
    drrho: dict[float, Array]
    touching: dict[float, Array]
    exact: dict[float, Array]


def fit(problem: Linear, n: int, rhos: tuple[float, ...], repetitions: int, seed: int) -> Fits:
    """Fits ERM and DRRho to fresh samples of size n."""
    erm, drrho = [], {rho: [] for rho in rhos}
    touching, exact = {rho: [] for rho in rhos}, {rho: [] for rho in rhos}
    reference = problem.reference
    for repetition in range(repetitions):
        x, y = problem.draw(n, np.random.default_rng(derive(seed, "linear", n, repetition)))
        erm.append(_excess(least_squares(x, y)))
        balance = divergence_to_balance(x, y, reference)
        for rho in rhos:
            theta = steered(x, y, reference, rho)
            drrho[rho].append(_excess(theta))
            touching[rho].append(bool((theta == reference).all()))
            exact[rho].append(balance <= rho / n)
    return Fits(np.array(erm), *({rho: np.array(v) for rho, v in each.items()} for each in (drrho, touching, exact)))


def balances(problem: Linear, n: int, repetitions: int, seed: int) -> Array:
    """n times the divergence that balances the reference's gradients, in fresh samples, ``[repetitions]``."""
    found = []
    for repetition in range(repetitions):
        random = np.random.default_rng(derive(seed, "balance", n, repetition))
        found.append(n * divergence_to_balance(*problem.draw(n, random), problem.reference))
    return np.array(found)


def _excess(theta: Array) -> float:
    return float(theta @ theta) / 2
