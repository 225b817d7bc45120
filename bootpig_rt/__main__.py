"""`python -m bootpig_rt` is the `bootpig-rt` command."""

from __future__ import annotations

from bootpig_rt.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
