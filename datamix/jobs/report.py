"""``datamix report``: the page of a finished set again, in a language of the reader's; the manifest lists the new page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from datamix.pipeline import write_shards
from datamix.pipeline.building import hold_folder, remove_building, staging
from datamix.pipeline.exporting import finished_manifest
from datamix.pipeline.out_folder import owned_files, switch
from datamix.reporting import render_report

PAGE = "report.html"


def write_report(
    out: Path, language: str = "en", losses: Path | None = None, warn: Callable[[str], None] = print
) -> Path:
    """Write ``OUT/report.html`` anew and return its path; in English, without ``losses``, it is the page that the build wrote.

    A page that somebody changed is set aside as ``report.html.yours``, and ``warn`` is given a sentence about it. Raises
    RecipeError where OUT is no finished set, for a language that the page does not have, or for a file of losses that is none.
    """
    finished_manifest(out)
    with hold_folder(out):
        manifest = finished_manifest(out)  # another command may have ended meanwhile
        staged = staging(out)
        (staged / PAGE).write_text(
            render_report(out, manifest, language=language, losses=losses), encoding="utf-8"
        )
        rest = [entry for entry in manifest["outputs"] if entry["path"] != PAGE]
        new = [*rest, write_shards.output(staged, staged / PAGE, "report", "report", 0)]
        new.sort(key=lambda entry: str(entry["path"]))
        replaced = {name: digests for name, digests in owned_files(out).items() if name == PAGE}
        manifests = (manifest | {"outputs": rest}, manifest | {"outputs": new})
        switch(out, staged, replaced, manifests, warn)
        remove_building(out)
    return out / PAGE
