"""What encoders need of a tokenizer.json, parsed once: the plain tokenizer and the tokens that are not plain.

The plain tokenizer is the tokenizer.json without its control tokens: they are taken out of ``added_tokens``,
their entries in the vocabulary are renamed to strings that no text spells (ids stay), and merges that would
build them are dropped. SentencePiece-like tokenizers put a blank before a text, so there is a second plain
tokenizer without it, for texts that continue a cut one.

Cost: a vocabulary of 150,000 entries takes a quarter second to parse and rewrite; what is left of 18 MB is 6,
which a library loads in three quarters of the time. Written into a folder it is read in 10 ms.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from datamix.core.errors import RecipeError
from datamix.tokenize.special_tokens import ControlTokens, control_tokens, is_layout

UNSPELLED = "\U0010fffe"  # a noncharacter: renamed vocabulary entries begin and end with it
_FACTS = "facts.json"
PARSED_VERSION = 1  # raised by hand where the parsed form of a tokenizer.json changes


@dataclass(frozen=True)
class ParsedTokenizer:
    """A tokenizer.json as encoders use it."""

    plain: str  # JSON of the plain tokenizer
    continued: str | None  # and of the one for texts that continue a cut one, where it differs
    added_tokens: list[dict[str, Any]]
    post_processor: Any  # decides the frame of documents
    vocab_size: int  # largest id + 1, added tokens included
    unknown_id: int | None
    named_ids: dict[str, int]  # of the tokens that the tokenizer's configuration names, by text
    restarts_after_control: bool  # whether text after a control token is treated as the beginning of a text

    @property
    def control(self) -> ControlTokens:
        return control_tokens(self.added_tokens)

    def write(self, folder: Path) -> None:
        """Write it into an empty folder."""
        facts = asdict(self)
        for name in ("plain", "continued"):
            text = facts.pop(name)
            if text is not None:
                (folder / f"{name}.json").write_text(text, encoding="utf-8")
        (folder / _FACTS).write_bytes(orjson.dumps(facts))


def read_parsed(folder: Path) -> ParsedTokenizer:
    """What ``write`` wrote. Raises OSError where it is not there."""
    facts = orjson.loads((folder / _FACTS).read_bytes())
    continued = folder / "continued.json"
    text = continued.read_text(encoding="utf-8") if continued.exists() else None
    return ParsedTokenizer((folder / "plain.json").read_text(encoding="utf-8"), text, **facts)


def parse_tokenizer(raw: bytes, name: str, path: str, contents: tuple[str, ...] = ()) -> ParsedTokenizer:
    """Parse the bytes of a tokenizer.json; ``contents``: texts of tokens whose ids are asked for.

    Raises RecipeError where it is none; ``name`` and ``path`` are for its message.
    """
    try:
        spec = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise RecipeError(f"tokenizer: {path} is not JSON: {error}. Save the tokenizer again.") from error
    if not isinstance(spec, dict):
        raise RecipeError(f"tokenizer: {path} holds no JSON object. Save the tokenizer again.")
    if not isinstance(spec.get("model"), dict):
        raise RecipeError(
            f"tokenizer: {name} has a tokenizer.json without a `model`; it was not written by the "
            "`tokenizers` library. Save it again with `tokenizer.save_pretrained(folder)`."
        )
    added = spec.get("added_tokens", [])
    if not isinstance(added, list) or not all(
        isinstance(t, dict) and isinstance(t.get("id"), int) and isinstance(t.get("content"), str)
        for t in added
    ):
        raise RecipeError(
            f"tokenizer: {name} has a tokenizer.json whose `added_tokens` is no list of tokens with id and content. "
            "Save it again with `tokenizer.save_pretrained(folder)`."
        )
    return parsed_spec(spec, name, contents)


def parsed_spec(spec: dict[str, Any], name: str = "it", contents: tuple[str, ...] = ()) -> ParsedTokenizer:
    """The same of a tokenizer.json that is parsed and valid."""
    try:
        control = control_tokens(spec.get("added_tokens") or [])
        plain = plain_spec(spec, control)
        continued = without_prefix(plain)
        ids = _ids_of(spec, contents)
        splitters = _steps(plain.get("pre_tokenizer"), "pretokenizers")
        return ParsedTokenizer(
            plain=_dumped(plain),
            continued=None if continued == plain else _dumped(continued),
            added_tokens=spec.get("added_tokens") or [],
            post_processor=spec.get("post_processor"),
            vocab_size=vocabulary_size(spec),
            unknown_id=unknown_id(spec),
            named_ids={text: ids[text] for text in contents if text in ids},
            restarts_after_control=not any(
                step["type"] == "Metaspace" and step.get("prepend_scheme") == "first" for step in splitters
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(cannot_load(name, error)) from error


def cannot_load(name: str, error: Exception) -> str:
    """The message of a tokenizer.json that cannot be used."""
    return (
        f"tokenizer: the tokenizer.json of {name} cannot be loaded: {error}. Save the tokenizer again with "
        "`tokenizer.save_pretrained(folder)`, or name another."
    )


def _ids_of(spec: dict[str, Any], contents: tuple[str, ...]) -> dict[str, int]:
    """The ids of those of ``contents`` that are tokens; a Unigram vocabulary is a list of [token, score]."""
    vocab = spec["model"]["vocab"]
    if isinstance(vocab, list):
        ids = {entry[0]: index for index, entry in enumerate(vocab) if entry[0] in contents}
    else:
        ids = {text: vocab[text] for text in contents if text in vocab}
    return ids | {token["content"]: token["id"] for token in spec.get("added_tokens") or []}


def _dumped(spec: dict[str, Any]) -> str:
    return orjson.dumps(spec).decode()


def vocabulary_size(spec: dict[str, Any]) -> int:
    """Largest id + 1 of a parsed tokenizer.json."""
    vocab = spec["model"]["vocab"]
    largest = len(vocab) - 1 if isinstance(vocab, list) else max(vocab.values(), default=-1)
    return max([int(largest), *(int(token["id"]) for token in spec.get("added_tokens") or [])]) + 1


def plain_spec(spec: dict[str, Any], control: ControlTokens) -> dict[str, Any]:
    """The parsed tokenizer.json with its control tokens taken out: same ids, but no text spells them."""
    names = {token.text: f"{UNSPELLED}{token.id}{UNSPELLED}" for token in control.tokens}
    model = dict(spec["model"])
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    else:
        model["vocab"] = {names.get(text, text): index for text, index in vocab.items()}
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model and not names.keys().isdisjoint(vocab):
        model["merges"] = [merge for merge in model["merges"] if names.keys().isdisjoint(_parts(merge))]
    if "merges" in model:
        model["merges"] = _short(model["merges"])
    layout = [token for token in spec.get("added_tokens") or [] if is_layout(token)]
    return {
        **spec,
        "model": model,
        "added_tokens": layout,
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _short(merges: list[Any]) -> list[Any]:
    """Pairs as ``"a b"``, which is read in three quarters of the time; not where that would be read as another pair."""
    if set(map(type, merges)) != {list} or set(map(len, merges)) != {2}:
        return merges
    short = [f"{left} {right}" for left, right in merges]
    text = "\n".join(short)
    is_comment = "#version" in text  # of merges.txt: the library skips lines that begin so
    return merges if is_comment or text.count(" ") != len(short) else short


def _parts(merge: str | list[str]) -> tuple[str, str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right


def unknown_id(spec: dict[str, Any]) -> int | None:
    """The id of the unknown token, None where there is none."""
    model = spec["model"]
    if isinstance(model["vocab"], list):
        unknown = model.get("unk_id")
        return unknown if isinstance(unknown, int) else None
    name = model.get("unk_token")
    unknown = model["vocab"].get(name) if name is not None else None
    return unknown if isinstance(unknown, int) else None


def without_prefix(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec for a text that continues another: no blank is put before it."""
    normalizer = _steps(spec.get("normalizer"), "normalizers")
    splitters = _steps(spec.get("pre_tokenizer"), "pretokenizers")
    without_prepend = [step for step in normalizer if step["type"] != "Prepend"]
    drops_blanks = any(
        step["type"] in ("WhitespaceSplit", "Whitespace", "BertPreTokenizer") for step in splitters
    )
    if not drops_blanks:
        splitters = [_unprefixed(step) for step in splitters]
    changed = dict(spec)
    if len(without_prepend) != len(normalizer):
        sequence = {"type": "Sequence", "normalizers": without_prepend}
        changed["normalizer"] = sequence if without_prepend else None
    if splitters != _steps(spec.get("pre_tokenizer"), "pretokenizers"):
        changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": splitters}
    return changed


def _steps(node: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if node is None:
        return []
    if node["type"] == "Sequence":
        return [step for inner in node[name] for step in _steps(inner, name)]
    return [node]


def _unprefixed(step: dict[str, Any]) -> dict[str, Any]:
    if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
        changed = {key: value for key, value in step.items() if key != "add_prefix_space"}
        return {**changed, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
        return {**step, "add_prefix_space": False}
    return step
