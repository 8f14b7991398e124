"""Build every sample recipe, verify what was built, and say where it lies. What `make demo` runs."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from datamix.audit import verify
from datamix.core.errors import DatamixError
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe
from datamix.reporting.summaries import closing

HERE = Path(__file__).resolve().parent
KINDS = ("pretrain", "sft", "preference", "prompt")


def demo(out: Path) -> int:
    """Four sets, one a kind, below ``out``; 1 where a promise does not hold."""
    start, broken = time.monotonic(), 0
    for number, kind in enumerate(KINDS):
        wait = "   (the first build compiles its kernels: half a minute, once)" if number == 0 else ""
        print(f"\n── samples/{kind}.yaml{wait}", flush=True)
        options = Options(out / kind, out / ".datamix", overwrite=True)
        manifest = build(Recipe.read(HERE / f"{kind}.yaml"), options)
        print(closing(manifest, options.out, options.cache))
        checks = [check for check in verify(options.out) if check.name != "not checked"]
        for check in checks:
            if not check.ok:
                broken += 1
                print(f"FAIL {check.name}: {check.detail}")
        print(
            f"Verified:   {sum(c.ok for c in checks)} of {len(checks)} promises hold, recounted from the files."
        )
    print(f"\n{len(KINDS)} training sets in {time.monotonic() - start:.0f} s. Open a report:")
    for kind in KINDS:
        print(f"  {(out / kind / 'report.html').resolve().as_uri()}")
    return 1 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(demo(Path("demo")))
    except DatamixError as error:
        sys.exit(f"datamix: {error}")
