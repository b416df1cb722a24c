"""Curves through points: power laws, and losses between the learning rates that were tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .results import Floats


@dataclass(frozen=True)
class PowerLaw:
    """y = prefactor * x^exponent; the error of the exponent is enlarged where chi^2 exceeds the degrees of freedom."""

    exponent: float
    error: float
    prefactor: float
    chi2: float
    freedom: int

    def __call__(self, x: Any) -> Any:
        return self.prefactor * np.asarray(x, dtype=float) ** self.exponent


def power_law(x: Any, y: Any, error: Any) -> PowerLaw | None:
    """Weighted least squares in logarithms. None for fewer than two positive points.

    Points without an error (NaN or 0: one seed, or equal values) are weighted equally if that holds for all of them, else left out.
    """
    x, y, error = (np.asarray(v, dtype=float) for v in (x, y, error))
    good = np.isfinite(y) & (y > 0) & (x > 0)
    known = good & np.isfinite(error) & (error > 0)
    weighted = int(known.sum()) >= 2
    use = known if weighted else good
    if use.sum() < 2:
        return None
    a, b = np.log(x[use]), np.log(y[use])
    w = (y[use] / error[use]) ** 2 if weighted else np.ones(use.sum())
    centre = (w * a).sum() / w.sum()
    spread = (w * (a - centre) ** 2).sum()
    if spread <= 0:
        return None
    slope = (w * (a - centre) * b).sum() / spread
    level = (w * b).sum() / w.sum() - slope * centre
    chi2 = float((w * (b - level - slope * a) ** 2).sum())
    freedom = int(use.sum()) - 2
    scale = chi2 / freedom if freedom > 0 else (1.0 if weighted else np.nan)
    variance = (max(1.0, scale) if weighted else scale) / spread
    return PowerLaw(float(slope), float(np.sqrt(variance)), float(np.exp(level)), chi2, freedom)


@dataclass(frozen=True)
class Smooth:
    """A smooth curve through all points (validation/lr_sweep.cpp has the same): from one point to the next the two parabolas through
    either end and its neighbours, mixed with weights that pass linearly from the one to the other. Where a neighbour lacks or is not
    finite there is one parabola, or the straight line.
    """

    x: Floats  #: ascending
    y: Floats

    def _bend(self, k: int) -> float:
        """Second divided difference at point k; NaN at an end."""
        if k < 1 or k + 1 >= len(self.x) or not np.isfinite(self.y[k - 1 : k + 2]).all():
            return np.nan
        slopes = np.diff(self.y[k - 1 : k + 2]) / np.diff(self.x[k - 1 : k + 2])
        return float((slopes[1] - slopes[0]) / (self.x[k + 1] - self.x[k - 1]))

    def _pieces(self) -> list[tuple[int, Any]]:
        """(k, cubic in s = (x - x_k) / (x_k+1 - x_k)) between finite neighbours."""
        s = np.polynomial.Polynomial([0, 1])
        pieces = []
        for k in range(len(self.x) - 1):
            if np.isfinite(self.y[k : k + 2]).all():
                bends = [b for b in (self._bend(k), self._bend(k + 1)) if np.isfinite(b)] or [0.0]
                left, right = bends[0], bends[-1]
                step, rise = self.x[k + 1] - self.x[k], self.y[k + 1] - self.y[k]
                pieces.append((k, self.y[k] + rise * s + ((1 - s) * left + s * right) * s * (s - 1) * step**2))
        return pieces

    def points(self, each: int = 24) -> tuple[Floats, Floats]:
        """(x, y) to draw, `each` between two points; NaN where the curve is interrupted."""
        s = np.append(np.linspace(0, 1, each + 1), np.nan)
        xs, ys = np.empty(0), np.empty(0)
        for k, cubic in self._pieces():
            if len(xs) and xs[-2] == self.x[k]:
                xs, ys = xs[:-1], ys[:-1]  # goes on where the piece before ends
            xs = np.append(xs, self.x[k] * (1 - s) + s * self.x[k + 1])
            ys = np.append(ys, cubic(s))
        return xs, ys

    def lowest(self) -> tuple[float, float] | None:
        """(x, y) of the curve's lowest point; None if nothing is finite."""
        if not np.isfinite(self.y).any():
            return None
        k = int(np.nanargmin(np.where(np.isfinite(self.y), self.y, np.inf)))
        x, y = float(self.x[k]), float(self.y[k])
        for k, cubic in self._pieces():
            for root in cubic.deriv().roots():
                if abs(root.imag) < 1e-12 and 0 < root.real < 1 and cubic(root.real) < y:
                    x, y = float(self.x[k] + root.real * (self.x[k + 1] - self.x[k])), float(cubic(root.real))
        return x, y


def with_error(value: float, error: float) -> str:
    """0.498 and 0.003 as "0.498(3)", 1.019 and 0.011 as "1.019(11)"; without a finite error two decimals."""
    if not np.isfinite(error) or error <= 0:
        return f"{value:.2f}".replace("-0.00", "0.00")
    digits = max(0, int(np.ceil(np.log10(3 / error) - 1e-9)))  # the error then has units from 3 to 30
    return f"{value:.{digits}f}({error * 10**digits:.0f})"
