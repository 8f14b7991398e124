"""Documents to ids: [BOS where the tokenizer adds one] + text + [EOS]; fill in the middle; split points."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths
from datamix.core.errors import RecipeError
from datamix.core.hashing import mix64, salt
from datamix.tokenize.special_tokens import ControlTokens
from datamix.tokenize.tokenizer import FlatIds, PlainEncoder
from datamix.tokenize.tokenizer_files import TokenizerFiles, decoder_of

Frame = tuple[list[int], list[int]]  # ids before and after each document
DocumentPart = str | int  # plain text, or a control id


class DocumentEncoder:
    """Encodes documents as plain text, with control tokens where allowed or for fill in the middle."""

    def __init__(
        self, plain: PlainEncoder, control: ControlTokens, allow: bool, middle: FillMiddle | None
    ) -> None:
        self._plain = plain
        self._control = control
        self._allow = allow
        self._middle = middle

    def encode(self, texts: list[str], has_control: NDArray[np.bool_], frame: Frame) -> FlatIds:
        """Framed ids of each text, none for an empty one; ``has_control``: which hold control literals."""
        if self._middle is not None or (self._allow and has_control.any()):
            flat = self._encode_parts([self._parts(text) for text in texts])
        else:
            flat = self._plain.encode(texts)
        return framed(flat, np.fromiter(map(bool, texts), np.bool_, len(texts)), frame)

    def starts(self, text: str, frame: Frame) -> NDArray[np.int64] | None:
        """Where each token of a framed text begins, in characters, and where the last ends: ``[num_ids + 1]``.

        A token that begins inside a character counts from that character. None where the text is cut for fill in the
        middle: its tokens are not in the order of its characters.
        """
        if self._middle is not None and self._middle.cut(text) is not None:
            return None
        starts, at = [0] * len(frame[0]), 0
        controls = [(match.start, match.end) for match in (self._control.find(text) if self._allow else [])]
        for start, end in [*controls, (len(text), len(text))]:
            begins = at == 0 or self._plain.restarts_after_control
            starts += [at + place for place in self._plain.character_starts(text[at:start], begins)]
            starts += [start] if end > start else []
            at = end
        return np.array([*starts, *[len(text)] * (len(frame[1]) + 1)], np.int64)

    def _parts(self, text: str) -> list[DocumentPart]:
        """A text cut for fill in the middle, and at its control tokens where they are allowed."""
        cut = None if self._middle is None else self._middle.cut(text)
        parts: list[DocumentPart] = []
        for part in cut or [text]:
            if isinstance(part, int):
                parts.append(part)
                continue
            at = 0
            for match in self._control.find(part) if self._allow else []:
                parts += [part[at : match.start], match.token.id]
                at = match.end
            parts.append(part[at:])
        return [part for part in parts if part != ""]

    def _encode_parts(self, documents: list[list[DocumentPart]]) -> FlatIds:
        strings = [part for parts in documents for part in parts if isinstance(part, str)]
        begins = [
            at == 0 or self._plain.restarts_after_control  # all but the first follow a control token
            for parts in documents
            for at, part in enumerate(parts)
            if isinstance(part, str)
        ]
        flat = self._plain.encode(strings, begins)
        texts = iter(np.split(flat.ids, flat.offsets[1:-1]))
        lists = [
            [np.array([part], np.int32) if isinstance(part, int) else next(texts) for part in parts]
            for parts in documents
        ]
        offsets = offsets_from_lengths([sum(map(len, arrays)) for arrays in lists])
        return FlatIds(
            np.concatenate([np.empty(0, np.int32), *(ids for arrays in lists for ids in arrays)]), offsets
        )


def framed(flat: FlatIds, has_text: NDArray[np.bool_], frame: Frame) -> FlatIds:
    """``[1, 2 | 3]`` with frame ``([0], [9])`` -> ``[0, 1, 2, 9 | 0, 3, 9]``."""
    before, after = frame
    offsets = flat.offsets + offsets_from_lengths(np.where(has_text, len(before) + len(after), 0))
    ids = np.empty(int(offsets[-1]), np.int32)
    is_text = np.ones(len(ids), np.bool_)
    starts, ends = offsets[:-1][has_text], offsets[1:][has_text]
    for place, token in enumerate(before):
        ids[starts + place] = token
        is_text[starts + place] = False
    for place, token in enumerate(reversed(after)):
        ids[ends - 1 - place] = token
        is_text[ends - 1 - place] = False
    ids[is_text] = flat.ids
    return FlatIds(ids, offsets)


def frame_ids(spec: dict[str, Any], files: TokenizerFiles) -> Frame:
    """The ids around each document: those that the post-processor puts before it, and EOS after it.

    Raises RecipeError where the tokenizer has no token that separates documents.
    """
    before, after = _post_processor_ids(spec.get("post_processor"))
    if files.eos_token_id is not None:
        after = [files.eos_token_id]
    if not after:
        raise RecipeError(
            f"tokenizer: {files.name} names no eos_token, so documents cannot be separated. Name one in "
            "tokenizer_config.json beside tokenizer.json."
        )
    return before, after


def _post_processor_ids(node: dict[str, Any] | None) -> Frame:
    if node is None:
        return [], []
    if node["type"] == "Sequence":
        frames = [_post_processor_ids(inner) for inner in node["processors"]]
        return [id_ for frame in frames for id_ in frame[0]], [id_ for frame in frames for id_ in frame[1]]
    if node["type"] in ("BertProcessing", "RobertaProcessing"):
        return [node["cls"][1]], [node["sep"][1]]
    if node["type"] != "TemplateProcessing":
        return [], []
    before: list[int] = []
    after: list[int] = []
    side = before
    for part in node["single"]:
        if "Sequence" in part:
            side = after
        else:
            side += node["special_tokens"][part["SpecialToken"]["id"]]["ids"]
    return before, after


_FIM_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),  # Mistral
)


class FimTokens(NamedTuple):
    """The ids of a tokenizer's tokens for fill in the middle."""

    prefix: int
    suffix: int
    middle: int


def fim_tokens(control: ControlTokens) -> FimTokens | None:
    """A tokenizer's tokens for fill in the middle, None where it has none."""
    ids = {token.text: token.id for token in control.tokens}
    for names in _FIM_TOKENS:
        if all(name in ids for name in names):
            return FimTokens(*(ids[name] for name in names))
    return None


class FillMiddle(NamedTuple):
    """How documents are cut for fill in the middle: a share of them, by a seed."""

    tokens: FimTokens
    rate: float
    seed: int

    def cut(self, text: str) -> list[str | int] | None:
        """``[<PRE>, prefix, <SUF>, suffix, <MID>, middle]``, or None where the text stays whole."""
        parts = cut_middle(text, self.rate, self.seed)
        if parts is None:
            return None
        prefix, middle, suffix = parts
        return [self.tokens.prefix, prefix, self.tokens.suffix, suffix, self.tokens.middle, middle]


def cut_middle(text: str, rate: float, seed: int) -> tuple[str, str, str] | None:
    """(prefix, middle, suffix) of a text, with probability ``rate``; else None."""
    base = salt(seed, "fim") ^ np.uint64(xxhash.xxh3_64_intdigest(text.encode("utf-8")))
    draws = mix64(base + np.arange(3, dtype=np.uint64)) / np.float64(2**64)
    if draws[0] >= rate or len(text) < 2:
        return None
    first, second = sorted(int(draw * (len(text) + 1)) for draw in draws[1:])
    return text[:first], text[first:second], text[second:]


_ENDS = re.compile(r"(\n\s*|[.!?。！？…][\"'”’»」』)）\]】]*\s*)\Z")


@lru_cache(maxsize=2)
def split_points(files: TokenizerFiles) -> NDArray[np.bool_]:
    """``[vocab_size]``: True where the decoded token ends with a newline or a full stop of any script."""
    tokenizer = decoder_of(files)
    texts = tokenizer.decode_batch([[token] for token in range(files.vocab_size)], skip_special_tokens=False)
    return np.fromiter((_ENDS.search(text) is not None for text in texts), np.bool_, files.vocab_size)
