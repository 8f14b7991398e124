"""Build every sample recipe, verify what was built, and say where it lies. What `make demo` runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from datamix.cli import main

HERE = Path(__file__).resolve().parent
KINDS = ("pretrain", "sft", "preference", "prompt")


def demo() -> None:
    """Four sets, one a kind, below ``demo/``."""
    start = time.monotonic()
    out = Path("demo")
    for kind in KINDS:
        print(f"\n── {kind}: samples/{kind}.yaml ──", flush=True)
        main(["build", str(HERE / f"{kind}.yaml"), "-o", str(out / kind), "--overwrite"])
        main(["verify", str(out / kind)])
    print(
        f"\nBuilt and verified {len(KINDS)} training sets in {time.monotonic() - start:.0f} s. Open a report:"
    )
    for kind in KINDS:
        print(f"  {(out / kind / 'report.html').resolve().as_uri()}")


if __name__ == "__main__":
    sys.exit(demo())
