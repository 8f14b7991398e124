"""``--by``: which score, and the model or files that it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from datamix.core.errors import RecipeError, nearest

MethodName = Literal["nll", "ifd", "dsir", "linear", "fasttext", "classifier", "jsonl"]
_FORMS: dict[str, str] = {
    "nll": "nll:MODEL or nll:URL#MODEL",
    "ifd": "ifd:MODEL or ifd:URL#MODEL",
    "dsir": "dsir:FILES",
    "linear": "linear:GOOD,OTHER",
    "fasttext": "fasttext:FILE or fasttext:FILE#LABEL",
    "classifier": "classifier:MODEL or classifier:MODEL#LABEL",
    "jsonl": "jsonl:FILE",
}


@dataclass(frozen=True)
class Method:
    """A parsed ``--by``."""

    name: MethodName
    target: str  # model, URL, file or files
    detail: str | None = None  # behind `#`: the model at an endpoint, or a label


def parse_method(text: str) -> Method:
    """``fasttext:edu.bin#__label__hq`` -> its parts. Raises RecipeError."""
    name, colon, rest = text.partition(":")
    if name not in _FORMS:
        close = nearest(name, list(_FORMS))
        hint = f"Did you mean {close}?" if close else f"There are: {', '.join(_FORMS.values())}."
        raise RecipeError(f"--by {text}: no score is called {name!r}. {hint}")
    form = _FORMS[name]
    if not colon or not rest:
        raise RecipeError(f"--by {text}: {name} needs what it is made from: {form}.")
    target, mark, detail = rest, "", ""
    if name in ("fasttext", "classifier") or (name in ("nll", "ifd") and "://" in rest):
        target, mark, detail = rest.rpartition("#") if "#" in rest else (rest, "", "")
    if (mark and not detail) or not target:
        raise RecipeError(f"--by {text}: something is missing beside `#`: {form}.")
    if name in ("nll", "ifd") and "://" in target and not detail:
        raise RecipeError(f"--by {text}: the model at this address is not named: {name}:URL#MODEL.")
    if name == "linear" and len([part for part in rest.split(",") if part]) != 2:
        raise RecipeError(f"--by {text}: linear takes two files or globs, good ones and others: {form}.")
    return Method(name, target, detail or None)  # type: ignore[arg-type]
