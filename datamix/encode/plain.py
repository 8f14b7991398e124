"""Documents to ids: [BOS where the tokenizer adds one] + text + [EOS]."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.encode.control import ControlTokens
from datamix.encode.engine import Flat, PlainEncoder
from datamix.encode.files import TokenizerFiles
from datamix.errors import RecipeError

Frame = tuple[list[int], list[int]]  # ids before and after each document


class DocumentEncoder:
    """Encodes documents as plain text, or with their control tokens where those are allowed."""

    def __init__(self, plain: PlainEncoder, control: ControlTokens, allow: bool) -> None:
        self._plain = plain
        self._control = control
        self._allow = allow

    def encode(self, texts: list[str], held: NDArray[np.bool_], frame: Frame) -> Flat:
        """The framed ids of each text; an empty text gives none. ``held``: which texts hold control literals."""
        if self._allow and held.any():
            flat = self._encode_allowing(texts)
        else:
            flat = self._plain.encode(texts)
        return framed(flat, np.fromiter(map(bool, texts), np.bool_, len(texts)), frame)

    def _encode_allowing(self, texts: list[str]) -> Flat:
        strings: list[str] = []
        begins: list[bool] = []
        owners: list[int] = []  # per part: its text, or -1 - id of the control token
        rows: list[int] = []
        for row, text in enumerate(texts):
            at, begin = 0, True
            for found in [*self._control.find(text), None]:
                stop = len(text) if found is None else found.start
                if stop > at:
                    owners.append(len(strings))
                    strings.append(text[at:stop])
                    begins.append(begin)
                    rows.append(row)
                if found is not None:
                    owners.append(-1 - found.token.id)
                    rows.append(row)
                    at, begin = found.end, self._plain.restarts_after_control
        flat = self._plain.encode(strings, begins)
        lists = [
            np.array([-1 - owner], np.int32)
            if owner < 0
            else flat.ids[flat.offsets[owner] : flat.offsets[owner + 1]]
            for owner in owners
        ]
        lengths = np.bincount(rows, weights=[len(ids) for ids in lists], minlength=len(texts)).astype(
            np.int64
        )
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return Flat(np.concatenate(lists) if lists else np.empty(0, np.int32), offsets)


def framed(flat: Flat, has_text: NDArray[np.bool_], frame: Frame) -> Flat:
    """``[1, 2 | 3]`` with frame ``([0], [9])`` -> ``[0, 1, 2, 9 | 0, 3, 9]``."""
    before, after = frame
    extra = np.where(has_text, len(before) + len(after), 0)
    offsets = flat.offsets + np.concatenate([[0], np.cumsum(extra)])
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
    return Flat(ids, offsets)


def frame_ids(spec: dict[str, Any], files: TokenizerFiles) -> Frame:
    """What stands around each document: what the post-processor puts before it, and EOS after it."""
    before, after = _around(spec.get("post_processor"))
    if files.eos_token_id is not None:
        after = [files.eos_token_id]
    if not after:
        raise RecipeError(
            f"tokenizer: {files.name} names no eos_token, so documents cannot be told apart. Name one in "
            "tokenizer_config.json beside tokenizer.json."
        )
    return before, after


def _around(node: dict[str, Any] | None) -> Frame:
    if node is None:
        return [], []
    if node["type"] == "Sequence":
        frames = [_around(inner) for inner in node["processors"]]
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
