"""The command `searchfit` and `python -m searchfit`."""

from __future__ import annotations

from searchfit.cli import main

if __name__ == "__main__":
    main()
