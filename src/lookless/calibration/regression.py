"""An affine map of low rank, from sums over rows: ridge regression, and of its result the best part of a given rank."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ModelError
from ..weights import Weights


class Moments:
    """Weighted sums over rows of inputs and outputs, float64: all that a regression needs of them.

    Two rows, of which the second counts twice; the constant is the weighted mean of the outputs:

    >>> import torch
    >>> moments = Moments(2)
    >>> moments.add(torch.eye(2), torch.tensor([[3.0, 0.0], [0.0, 6.0]]), torch.tensor([1.0, 2.0]))
    >>> moments.fit(rank=0).parts["constant"].tolist()
    [1.0, 4.0]
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(2 * width + 1, 2 * width + 1, dtype=torch.float64, device=device)
        self._width = width

    def add(self, inputs: Tensor, outputs: Tensor, weights: Tensor | None = None) -> None:
        """``inputs, outputs [rows, width]``; of each row how much it counts, ``weights [rows]``, by default 1."""
        rows = torch.cat((inputs, outputs, inputs.new_ones(len(inputs), 1)), dim=1).double()
        weighted = rows if weights is None else rows * weights.double()[:, None]
        self._sum += rows.T @ weighted

    @property
    def count(self) -> float:
        """Weight of all rows."""
        return float(self._sum[-1, -1])

    def fit(self, *, rank: int, ridge: float = 0.0, metric: Tensor | None = None) -> Weights:
        """The affine map of ``rank`` with the least weighted squared error; of rank 0 the mean output.

        Ridge regression, then its part of ``rank`` that explains most of what it gives (reduced-rank regression).

        Args:
            rank: at most the width.
            ridge: what is added to the inputs' covariance, as a share of its mean variance.
            metric: an error ``e`` counts ``e @ metric @ e``, ``[width, width]``; by default its length squared. It
                decides which part is the best of ``rank``.

        Raises:
            ModelError: there are no rows, or they are not finite.
        """
        count = self.count
        if not (count > 0 and self._sum.isfinite().all()):
            raise ModelError("a map cannot be fitted: no visual row was seen, or what it holds is not finite.")
        n, mean = self._width, self._sum[-1, :-1] / count
        covariance = self._sum[:-1, :-1] / count - mean[:, None] * mean
        inner, cross = covariance[:n, :n], covariance[n:, :n]
        if rank == 0:
            return Weights.of(mean[n:].cpu())
        eye = torch.eye(n, dtype=inner.dtype, device=inner.device)
        damped = inner + max(ridge, 1e-9) * inner.trace().clamp_min(1e-30) / n * eye
        whole = torch.linalg.solve(damped, cross.T).T  # the ridge regression
        root, inverse = _roots(eye if metric is None else metric.to(eye))
        explained = root @ whole @ cross.T @ root
        best = torch.linalg.eigh((explained + explained.T) / 2).eigenvectors[:, -rank:]
        up, down = inverse @ best, best.T @ root @ whole
        return Weights.of((mean[n:] - up @ (down @ mean[:n])).cpu(), down.cpu(), up.cpu())


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of a covariance and that root's inverse; directions that count nothing count a little."""
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp_min(0) + 1e-2 * values.clamp_min(0).mean() + 1e-30
    return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
