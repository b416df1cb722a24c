"""Runs the code of a notebook in small, without Jupyter: notebook.py FILE.ipynb, as tests/identity/examples.cpp does.

Cells run one after the other in the notebook's folder; solve, train and validate take small sizes in the place of those given. What a cell
shows has to be something: a picture, or text.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import moe_dmft

SMALL: dict[str, Any] = {
    "train": 8, "test": 0, "steps": 2, "neurons": 24, "replicas": 2, "widths": [16, 32], "seeds": 2, "threads": 1,
    "kernels_at": [0, 2], "distributions_at": [0, 2], "lr_sweep": "0.1:0.4:3",
}  # fmt: skip


def in_small(function: Callable[..., moe_dmft.Results]) -> Callable[..., moe_dmft.Results]:
    """The function with SMALL in the place of what the call says, as far as it says anything."""

    def call(*args: Any, **keys: Any) -> moe_dmft.Results:
        always = {k: v for k, v in SMALL.items() if k in ("train", "test", "threads", "replicas")}
        return function(*args, **keys | always | {k: v for k, v in SMALL.items() if k in keys})

    return call


def main(file: Path) -> None:
    matplotlib.use("agg")
    moe_dmft.solve, moe_dmft.train, moe_dmft.validate = map(in_small, (moe_dmft.solve, moe_dmft.train, moe_dmft.validate))
    os.chdir(file.parent)
    names: dict[str, Any] = {}
    pictures = 0
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"], "outputs do not belong into the repository: clear them"
        body = ast.parse("".join(cell["source"]))
        last = ast.Expression(body.body.pop().value) if isinstance(body.body[-1], ast.Expr) else None
        exec(compile(body, file.name, "exec"), names)
        shown = eval(compile(last, file.name, "eval"), names) if last is not None else None
        picture = getattr(shown, "_repr_png_", None)  # what Jupyter asks for
        if picture is not None:
            assert picture().startswith(b"\x89PNG")
            pictures += 1
    print(f"{pictures} pictures")
    assert pictures


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
