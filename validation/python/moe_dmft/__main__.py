"""dmft_plot: figures and a page out of result files."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from .command import main
    except ImportError as error:
        print(f"dmft_plot: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(main(sys.argv[1:]))
