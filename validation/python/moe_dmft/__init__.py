"""Results of the toolkit in Python: read them, run the programs, draw figures.

    import moe_dmft
    limit = moe_dmft.solve(regime="II", param="mssp", optimizer="sgd", lr=0.5, steps=40)
    networks = moe_dmft.train(regime="II", param="mssp", optimizer="sgd", lr=0.5, steps=40, widths=[32, 64], seeds=4)
    axes = moe_dmft.figures.loss([limit, networks])
    axes.figure.savefig("loss.pdf")

`load(FILE)` reads a result file of any of the programs. Put validation/python on PYTHONPATH, or run a script with
validation/python/python. Needs Python 3.11, numpy, h5py and matplotlib (Debian: python3-h5py, python3-matplotlib).
"""

from importlib import util as _util

_missing = [name for name in ("numpy", "h5py", "matplotlib") if _util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f"moe_dmft needs {', '.join(_missing)}, which this Python lacks. Install with "
        f"'apt-get install {' '.join('python3-' + name for name in _missing)}' and use /usr/bin/python3, or with pip."
    )

from . import figures  # noqa: E402
from .programs import ProgramError, solve, train, validate  # noqa: E402
from .results import Array, Curve, Group, ResultError, Results, load  # noqa: E402

__all__ = [
    "Array",
    "Curve",
    "Group",
    "ProgramError",
    "ResultError",
    "Results",
    "figures",
    "load",
    "solve",
    "train",
    "validate",
]
