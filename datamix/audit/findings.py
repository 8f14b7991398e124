"""What checks find: a line a promise with its first few violations, and the claims that no check derives.

A claim of the manifest is either derived again by a check or covered by an ``Unchecked``, in words and with the places of
the manifest that it covers; the tests change every leaf of a manifest and hold that against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPELLED_OUT = 3  # violations spelled out in one line


@dataclass(frozen=True)
class Check:
    """One promise: its name, whether it holds, and what was counted."""

    name: str
    ok: bool
    detail: str


@dataclass
class Findings:
    """Violations of one promise as they turn up."""

    name: str
    num: int = 0
    _sentences: list[str] = field(default_factory=list)

    def add(self, sentence: str, num: int = 1) -> None:
        """Note ``num`` violations, of which ``sentence`` is about the first."""
        if num and len(self._sentences) < _SPELLED_OUT:
            self._sentences.append(sentence)
        self.num += num

    def add_first(self, places: NDArray[np.int64], sentence: Callable[[int], str]) -> None:
        """Note a violation at each of ``places``; ``sentence`` is given the first."""
        if len(places):
            self.add(sentence(int(places[0])), len(places))

    def add_row(self, broken: NDArray[np.bool_], place: str, first: int, sentence: str) -> None:
        """Note a violation by each broken row of a batch, which begins at row ``first`` of ``place``."""
        self.add_first(np.flatnonzero(broken), lambda row: f"{place} {first + row:,} {sentence}")

    def extend(self, other: Findings) -> None:
        """Take over the violations of ``other``, its first spelled out."""
        self.add(other._sentences[0] if other.num else "", other.num)

    def expect(self, what: str, claimed: object, counted: object) -> None:
        """Note a violation unless the manifest's claim equals the count; floats within a rounding error."""
        if isinstance(claimed, float) or isinstance(counted, float):
            equal = isinstance(claimed, int | float) and close(float(claimed), float(str(counted)))
        else:
            equal = claimed == counted
        if not equal:
            self.add(f"{what} is {_value_text(counted)}, the manifest says {_value_text(claimed)}")

    def check(self, detail: str = "") -> Check:
        """The verdict; ``detail`` is what was counted where there is no violation."""
        if not self.num:
            return Check(self.name, True, detail)
        more = self.num - len(self._sentences)
        tail = f"; and {more:,} more" if more else ""
        return Check(self.name, False, "; ".join(self._sentences) + tail)


def close(left: float, right: float) -> bool:
    """Equal up to the rounding of sums of floats."""
    return abs(left - right) <= 1e-9 + 1e-7 * max(abs(left), abs(right))


def first_line(error: Exception) -> str:
    """A library's error, short enough for one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _value_text(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.8g}"


@dataclass(frozen=True)
class Unchecked:
    """A claim that no check derives; ``places`` are patterns of dotted paths into the manifest."""

    text: str
    places: tuple[str, ...] = ()


_ALWAYS = (
    Unchecked("key", ("key",)),
    Unchecked("datamix_version and packages", ("datamix_version", "packages.*")),
    Unchecked("sample", ("sample",)),
    Unchecked("commands and options of exports", ("commands", "commands.*", "exports", "exports.*")),
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
    Unchecked(
        "license, meta and fields carried along", ("recipe.sources.*.keep_meta", "recipe.sources.*.license")
    ),
)
_FILE_FACTS = ("path", "bytes", "sha256", "encoding", "container", "compression", "format")
_READ_KEYS = ("path", "format", "columns", "encoding", "system", "chat_template_kwargs")
_STEP_KEYS = ("clean", "encode", "chat_template", "chat_template_kwargs")
_FILES_ALONE = (
    Unchecked(
        "inputs' path, bytes, sha256, encoding, container, compression and format (needs --inputs)",
        tuple(f"inputs.*.{key}" for key in _FILE_FACTS),
    ),
    Unchecked("sources' mended_by (needs --inputs)", ("sources.*.mended_by", "sources.*.mended_by.*")),
    Unchecked(
        "that reading, cleaning and encoding followed the recipe (needs --inputs)",
        (*(f"recipe.{key}" for key in _STEP_KEYS), *(f"recipe.sources.*.{key}" for key in _READ_KEYS)),
    ),
)
_MASKS = "masks that begin within the answer in every row, and which of several answers are trained (needs --inputs)"
_REWEIGHED = ("mixture.stages.*.weights.*", "mixture.stages.*.ramp_from.*")


def unchecked_claims(
    manifest: dict[str, Any], share: float | None, met: Sequence[Unchecked]
) -> list[Unchecked]:
    """All that no check derived; ``share`` of the rows were encoded again, ``met`` is what the checks of this set could not."""
    claims = [*met, *_ALWAYS]
    if share is None:
        claims = [*_FILES_ALONE, *claims]
        if manifest["kind"] == "sft" and manifest["recipe"]["encode"]["loss_on"] != "all":
            claims.append(Unchecked(_MASKS))
    elif share < 1:
        claims.append(Unchecked("rows outside of the sample encoded again"))
    if manifest["kind"] in ("preference", "prompt"):
        claims.append(Unchecked("texts beside the ids"))
    if manifest["recipe"]["mix"]["on_short"] == "reweigh":
        claims.append(Unchecked("weights lowered by on_short: reweigh", _REWEIGHED))
    return claims
