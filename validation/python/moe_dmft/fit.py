"""Power laws through points with errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


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


def with_error(value: float, error: float) -> str:
    """0.498 and 0.003 as "0.498(3)", 1.019 and 0.011 as "1.019(11)"; without a finite error two decimals."""
    if not np.isfinite(error) or error <= 0:
        return f"{value:.2f}".replace("-0.00", "0.00")
    digits = max(0, int(np.ceil(np.log10(3 / error) - 1e-9)))  # the error then has units from 3 to 30
    return f"{value:.{digits}f}({error * 10**digits:.0f})"
