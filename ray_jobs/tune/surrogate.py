"""A model of the score over the space, from the candidates that have finished: a Gaussian process.

Data-mixing laws (Ye et al. 2024, arXiv 2403.16952) fit the loss of each category as c + k exp(t . shares). Such a loss
is smooth in the shares, which is what the process assumes; unlike the law it also models scores of benchmarks and
further axes, and tells its uncertainty. Its mean is constant, its kernel squared exponential with one length for all
coordinates: a dozen points bear no more. The noise is given, not fitted, since it is known from seeds. The process
itself is scikit-learn's.

Shape suffixes: N candidates seen, M asked about, C coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import cho_solve
from scipy.special import ndtr
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

LENGTHS = (0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 1.6)
"""Tried for the kernel, in coordinates: the simplex's edge is 1.4 long. Below the shortest, points that lie as close as
those of a dozen candidates do would tell nothing of each other; above the longest the score is close to quadratic."""
_JITTER = 1e-6
"""Of the kernel's amplitude: keeps the factorisation sound when two points all but coincide."""


@dataclass(frozen=True)
class Surrogate:
    """A fitted process.

    Attributes:
        seen_NC: coordinates of the candidates seen.
        scores_N: their scores.
        variance_N: of the noise in each score.
        length: of the kernel.
        mean: of the process.
        amplitude: its variance.
    """

    seen_NC: np.ndarray
    scores_N: np.ndarray
    variance_N: np.ndarray
    length: float
    mean: float
    amplitude: float

    @classmethod
    def fitted(cls, seen_NC: np.ndarray, scores_N: np.ndarray, variance_N: np.ndarray) -> Surrogate:
        """The length of greatest likelihood; mean and amplitude are the scores' own.

        Args:
            seen_NC: coordinates.
            scores_N: of each; at least two.
            variance_N: of the noise in each.
        """
        mean, amplitude = float(scores_N.mean()), max(float(scores_N.var()), 1e-12)
        return max(
            (cls(seen_NC, scores_N, variance_N, length, mean, amplitude) for length in LENGTHS),
            key=lambda one: one.log_likelihood,
        )

    @property
    def log_likelihood(self) -> float:
        """Of the scores."""
        return float(self._process.log_marginal_likelihood_value_)

    def predict(self, asked_MC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the score at some coordinates, noise left out; [M] each."""
        mean_M, deviation_M = self._process.predict(asked_MC, return_std=True)
        return self.mean + mean_M, deviation_M

    def expected_improvement(self, asked_MC: np.ndarray) -> np.ndarray:
        """Over the best mean at what was seen, [M] (Jones et al. 1998; the best mean, since the best score is luck)."""
        best = self.predict(self.seen_NC)[0].max()
        mean_M, deviation_M = self.predict(asked_MC)
        deviation_M = np.maximum(deviation_M, 1e-12)
        z_M = (mean_M - best) / deviation_M
        density_M = np.exp(-0.5 * z_M**2) / np.sqrt(2 * np.pi)
        gain_M: np.ndarray = deviation_M * (z_M * ndtr(z_M) + density_M)
        return gain_M

    def believing(self, point_C: np.ndarray) -> Surrogate:
        """As if a point had been tried and had its predicted score, so that the next one proposed lies elsewhere."""
        predicted = self.predict(point_C[None])[0]
        return replace(
            self,
            seen_NC=np.vstack([self.seen_NC, point_C]),
            scores_N=np.append(self.scores_N, predicted),
            variance_N=np.append(self.variance_N, self.variance_N.mean()),
        )

    def leave_one_out_error(self) -> float:
        """Root mean square of the error in each score, predicted from all others.

        The length is that of the whole; error i is [K^-1 y]_i / [K^-1]_ii (Rasmussen and Williams 2006, 5.12).
        """
        inverse_NN = cho_solve((self._process.L_, True), np.eye(len(self.scores_N)))
        error_N = self._process.alpha_ / np.diag(inverse_NN)
        return float(np.sqrt(np.mean(error_N**2)))

    @cached_property
    def _process(self) -> GaussianProcessRegressor:
        kernel = ConstantKernel(self.amplitude) * RBF(self.length)
        noise_N = self.variance_N + _JITTER * self.amplitude
        process = GaussianProcessRegressor(kernel, alpha=noise_N, optimizer=None)
        return process.fit(self.seen_NC, self.scores_N - self.mean)
