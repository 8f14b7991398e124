"""What the files of a set cannot show: each in words, with the places of the manifest that it covers.

A claim of the manifest is either derived again by a check or covered here; the tests change every leaf and hold that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from datamix.audit.findings import Check


@dataclass(frozen=True)
class Unchecked:
    """A claim that nothing here derives; ``places`` are patterns of dotted paths into the manifest."""

    text: str
    places: tuple[str, ...] = ()


_ALWAYS = (
    Unchecked("key", ("key",)),
    Unchecked("datamix_version and packages", ("datamix_version", "packages.*")),
    Unchecked("sample", ("sample",)),
    Unchecked("commands", ("commands", "commands.*")),
    Unchecked("outputs' keeps", ("outputs.*.keeps", "outputs.*.keeps.*")),
    Unchecked(
        "split, rows and content of exports beyond their sha256", ("outputs.*.split", "outputs.*.rows")
    ),
    Unchecked("mixture.bound and packing.cut_records beyond what was emitted", ("mixture.bound",)),
    Unchecked("sources' truncated and noticed", ("sources.*.truncated", "sources.*.noticed")),
    Unchecked(
        "which records dedupe, decontaminate, validation and max_records chose",
        ("recipe.dedupe", "recipe.decontaminate", "recipe.validation", "recipe.sources.*.max_records"),
    ),
    Unchecked("license, meta and fields carried along", ("recipe.sources.*.keep_meta",)),
)
_FILES_ALONE = (
    Unchecked(
        "inputs' path, bytes, sha256, encoding, container, compression and format (needs --inputs)",
        tuple(
            f"inputs.*.{key}"
            for key in ("path", "bytes", "sha256", "encoding", "container", "compression", "format")
        ),
    ),
    Unchecked("sources' mended_by (needs --inputs)", ("sources.*.mended_by", "sources.*.mended_by.*")),
    Unchecked(
        "that reading, cleaning and encoding followed the recipe (needs --inputs)",
        (
            *(f"recipe.{k}" for k in ("clean", "encode", "chat_template", "chat_template_kwargs")),
            *(
                f"recipe.sources.*.{k}"
                for k in ("path", "format", "columns", "encoding", "system", "chat_template_kwargs")
            ),
        ),
    ),
)

_MASKS = Unchecked(
    "masks that begin within the answer in every row, and which of several answers are trained (needs --inputs)"
)


def unchecked_claims(
    manifest: dict[str, Any], share: float | None, met: Sequence[Unchecked]
) -> list[Unchecked]:
    """All that no check derived; ``share`` of the rows were made again, ``met`` is what the checks of this set could not."""
    claims = [*met, *_ALWAYS]
    if share is None:
        claims = [*_FILES_ALONE, *claims]
        if manifest["kind"] == "sft" and manifest["recipe"]["encode"]["loss_on"] != "all":
            claims.append(_MASKS)
    elif share < 1:
        claims.append(Unchecked("rows outside of the sample made again"))
    if manifest["kind"] in ("preference", "prompt"):
        claims.append(Unchecked("texts beside the ids"))
    if manifest["recipe"]["mix"]["on_short"] == "reweigh":
        claims.append(
            Unchecked("weights lowered by on_short: reweigh", ("mixture.stages.*.weights.*", "mixture.stages.*.ramp_from.*"))
        )  # fmt: skip
    return claims


def unchecked(claims: Sequence[Unchecked]) -> Check:
    """One line that names them."""
    return Check("not checked", True, "; ".join(claim.text for claim in claims))


def is_covered(claims: Sequence[Unchecked], path: str) -> bool:
    """Whether a dotted path into the manifest lies in one of the claims."""
    patterns = [pattern for claim in claims for pattern in claim.places]
    return any(fnmatchcase(path, p) or fnmatchcase(path, f"{p}.*") for p in patterns)
