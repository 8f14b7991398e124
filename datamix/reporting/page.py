"""``report.html``: one page about a finished set, which opens offline and says first what matters.

The page is a function of the manifest, the rows and the language: no time, no host, no absolute path, the same bytes wherever it
is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.core.losses import read_losses
from datamix.pipeline.progress import short_bytes
from datamix.reporting.charts import Section
from datamix.reporting.decode import read_manifest
from datamix.reporting.gather import gather
from datamix.reporting.loss_section import loss_section, loss_verdicts, source_losses
from datamix.reporting.sections import row_section, sections
from datamix.reporting.verdicts import Verdict, verdicts
from datamix.reporting.words import Words, percent, unit_words


def render_report(
    out: Path,
    manifest: dict[str, Any] | None = None,
    costs: NDArray[np.int64] | None = None,
    language: str = "en",
    losses: Path | None = None,
) -> str:
    """The report of the set below ``out`` as one HTML page.

    ``manifest`` is given where it is not written yet, ``costs`` (of each row, in the unit of the mixture) where they are
    known, ``losses`` a ``losses.jsonl`` of a run on the set. Raises RecipeError where ``out`` is no finished set, for a language that
    the page does not have, or for losses that are none.
    """
    manifest, say = manifest or read_manifest(out), Words(language)
    opening: list[Verdict] = []
    first: list[Section] = []
    if losses is not None:
        curves = read_losses(losses)
        by_source = source_losses(out, manifest, curves)
        opening, first = list(loss_verdicts(by_source, say)), [loss_section(by_source, curves, say)]
    shown = sections(out, manifest, gather(out, manifest, costs), say)
    return _set_page(manifest, [*opening, *verdicts(manifest, say)], [*first, *shown], say)


def render_rows(out: Path, manifest: dict[str, Any], first: int, num_rows: int) -> str:
    """A page of ``num_rows`` whole rows from row ``first`` on, decoded."""
    say = Words()
    return _set_page(manifest, [], [row_section(out, manifest, range(first, first + num_rows), say)], say)


def _set_page(
    manifest: dict[str, Any], opening: Sequence[Verdict], shown: Sequence[Section], say: Words
) -> str:
    emitted = [s["emitted"] for s in manifest["sources"].values()]
    packing, asked = manifest["packing"], manifest["mixture"]["unit"]
    limit = [say.count(packing["max_length"], "token")] if packing["max_length"] else []
    rows = say.join([packing["strategy"], *limit])
    if packing["fill"] is not None and packing["strategy"] != "none":
        rows += say(", {fill} full").format(fill=percent(packing["fill"], 1))
    units = sorted(("rows", "records", "tokens", "loss_tokens"), key=lambda unit: unit != asked)
    names = [say(unit_words(unit)) for unit in units]
    names[0] = say("{unit} (asked)").format(unit=names[0])
    # The sizes of this page and of the card are not known while they are written.
    size = sum(entry["bytes"] for entry in manifest["outputs"] if entry["format"] not in ("report", "card"))
    facts = [
        (say("kind"), manifest["kind"]),
        *((name, f"{sum(e[u] for e in emitted):,}") for name, u in zip(names, units, strict=True)),
        (say("sources"), f"{len(emitted):,}"),
        (say("packing"), rows),
        (say("tokenizer"), PurePath(manifest["tokenizer"]["name"]).name),
        (say("size"), short_bytes(size)),
        (say("content sha256"), (manifest["content_sha256"] or "")[:12]),
        (say("seed"), str(manifest["seed"])),
    ]
    made_by = "made by datamix {version}; `datamix verify` recounts every number on this page from the files."
    footer = [say(made_by).format(version=manifest["datamix_version"])]
    if manifest["content_sha256"]:
        footer.insert(0, f"{say('content')} {manifest['content_sha256']}")
    return render_page(manifest["name"], facts, opening, shown, footer, say)


def render_page(
    title: str,
    facts: Sequence[tuple[str, str]],
    opening: Sequence[Verdict],
    shown: Sequence[Section],
    footer: Sequence[str],
    say: Words,
) -> str:
    """Sections as one page that opens offline: ``facts`` below the title, then the opening sentences."""
    import jinja2  # not at start-up

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = environment.get_template("page.css").render()
    values = {"title": title, "facts": facts, "verdicts": opening, "sections": shown, "footer": footer}
    return environment.get_template("page.html").render(style=style, say=say, **values)
