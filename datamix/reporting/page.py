"""``report.html``: one page about a finished set, which opens offline and says first what matters.

The page is a function of the manifest and the rows: no time, no host, no absolute path, the same bytes wherever it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.reporting.decode import read_manifest
from datamix.reporting.gather import gather
from datamix.reporting.sections import Section, row_section, sections
from datamix.reporting.verdicts import Verdict, percent, verdicts


def render_report(
    out: Path, manifest: dict[str, Any] | None = None, costs: NDArray[np.int64] | None = None
) -> str:
    """The report of the set below ``out`` as one HTML page.

    ``manifest`` is given where it is not written yet, ``costs`` (of each row, in the unit of the mixture) where they are
    known. Raises RecipeError where ``out`` is no finished set.
    """
    manifest = manifest or read_manifest(out)
    return _page(manifest, verdicts(manifest), sections(out, manifest, gather(out, manifest, costs)))


def render_rows(out: Path, manifest: dict[str, Any], first: int, num_rows: int) -> str:
    """A page of ``num_rows`` whole rows from row ``first`` on, decoded."""
    return _page(manifest, [], [row_section(out, manifest, range(first, first + num_rows))])


def _page(manifest: dict[str, Any], opening: Sequence[Verdict], shown: Sequence[Section]) -> str:
    import jinja2  # not at start-up

    emitted = [s["emitted"] for s in manifest["sources"].values()]
    packing = manifest["packing"]
    rows = packing["strategy"] + (f", {packing['max_length']:,} tokens" if packing["max_length"] else "")
    if packing["fill"] is not None and packing["strategy"] != "none":
        rows += f", {percent(packing['fill'], 1)} full"
    facts = [
        ("kind", manifest["kind"]),
        ("sources", f"{len(emitted):,}"),
        *(
            (unit.replace("_", " "), f"{sum(e[unit] for e in emitted):,}")
            for unit in ("rows", "tokens", "loss_tokens")
        ),
        ("packing", rows),
        ("tokenizer", PurePath(manifest["tokenizer"]["name"]).name),
        ("seed", str(manifest["seed"])),
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    style = environment.get_template("page.css").render()
    return environment.get_template("page.html").render(
        manifest=manifest, facts=facts, verdicts=opening, sections=shown, style=style
    )
