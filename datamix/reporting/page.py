"""The page around the sections: a template, a style sheet, and the numbers at its head."""

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

_HERE = Path(__file__).parent


def render_report(
    out: Path, manifest: dict[str, Any] | None = None, costs: NDArray[np.int64] | None = None
) -> str:
    """The report of the set below ``out`` as one HTML page.

    ``manifest`` is given where it is not written yet, ``costs`` (of each row, in the unit of the mixture) where they are
    known. Raises RecipeError where ``out`` is no finished set.
    """
    said = read_manifest(out) if manifest is None else manifest
    return _page(said, verdicts(said), sections(out, said, gather(out, said, 3, costs)))


def render_rows(out: Path, manifest: dict[str, Any], first: int, num_rows: int) -> str:
    """A page of ``num_rows`` whole rows from row ``first`` on, decoded."""
    return _page(manifest, [], [row_section(out, manifest, range(first, first + num_rows))])


def _page(manifest: dict[str, Any], said: Sequence[Verdict], shown: Sequence[Section]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html").render(
        manifest=manifest,
        facts=_facts(manifest),
        verdicts=said,
        sections=shown,
        style=environment.get_template("page.css").render(),
    )


def _facts(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """What stands below the name."""
    emitted = [s["emitted"] for s in manifest["sources"].values()]
    total = {unit: sum(e[unit] for e in emitted) for unit in ("rows", "tokens", "loss_tokens")}
    packing = manifest["packing"]
    rows = (
        f"{packing['strategy']}, {packing['max_length']:,} tokens"
        if packing["max_length"]
        else packing["strategy"]
    )
    if packing["fill"] is not None and packing["strategy"] != "none":
        rows += f", {percent(packing['fill'], 1)} full"
    return [
        ("kind", manifest["kind"]),
        ("sources", f"{len(manifest['sources']):,}"),
        ("rows", f"{total['rows']:,}"),
        ("tokens", f"{total['tokens']:,}"),
        ("loss tokens", f"{total['loss_tokens']:,}"),
        ("packing", rows),
        ("tokenizer", PurePath(manifest["tokenizer"]["name"]).name),
        ("seed", str(manifest["seed"])),
    ]
