"""Whether trained spans of conversations begin where an assistant's turn begins, and hold the opening of no other turn.

The chat template beside the rows is rendered here for a small conversation, and tokenized, so the ids that open an
assistant's turn are known without the code that made the rows. A span is sound where these ids, and nothing but what the
template itself writes in front of an answer, stand before it. Templates whose turns open with plain text say nothing.
Cost: the tokenizer is loaded once; one pass over the ids of the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from datamix.audit.row_laws import lists, pieces
from datamix.core.arrays import IGNORE_INDEX

_FIRST, _SECOND = "ANSWER-ONE", "ANSWER-TWO"  # unlike anything that a template writes
_USER = {"role": "user", "content": "QUESTION-ONE"}
_CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}, "id": "call0000a"}
_CALLS = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "name": "f", "content": "RESULT", "tool_call_id": "call0000a"}
_THOUGHT = {"role": "assistant", "content": _SECOND, "reasoning_content": "THOUGHT", "thinking": "THOUGHT"}
_MAX_HEADER = 16  # tokens; more is a template that opens turns with plain text
_MAX_BLANKS = 3  # tokens of white space between a header and an answer

Messages = Sequence[dict[str, Any]]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class TurnHeaders:
    """The ids that stand before an answer, and those that open the turns of others."""

    headers: tuple[Ids, ...]  # without the white space at their end
    openers: NDArray[np.int64]
    blanks: frozenset[int]  # ids of white space alone

    @staticmethod
    def of(folder: Path, kwargs: dict[str, Any] | None) -> TurnHeaders | None:
        """The headers by the tokenizer and template in a folder; None where the template opens turns with plain text."""
        try:
            return _Probe(folder, kwargs or {}).headers()
        except Exception:  # a template or tokenizer of any kind: other checks say that they are whole
            return None


class _Probe:
    """Renders and tokenizes small conversations."""

    def __init__(self, folder: Path, kwargs: dict[str, Any]) -> None:
        from tokenizers import Tokenizer  # heavy

        spec = orjson.loads((folder / "tokenizer.json").read_bytes())
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._render = _renderer(folder, kwargs)
        self._control = {token["id"] for token in spec.get("added_tokens") or []}
        vocab = spec["model"]["vocab"]
        names = vocab.items() if isinstance(vocab, dict) else [(entry[0], n) for n, entry in enumerate(vocab)]
        self._blanks = frozenset(
            n for name, n in names if not name.strip("ĊĠ\u2581 \n\t\r") or name == "<0x0A>"
        )

    def headers(self) -> TurnHeaders | None:
        answers = [{"role": "assistant", "content": text} for text in (_FIRST, _SECOND)]
        talk = [_USER, answers[0], {"role": "user", "content": "QUESTION-TWO"}, answers[1]]
        ids, before = self._before(talk, _SECOND)
        _, question = self._before(talk, "QUESTION-TWO")
        last = max((n for n, token in enumerate(before) if token in self._control), default=-1)
        if last < 0:
            return None
        while last > 0 and (
            question[last - len(before) :] == before[last:] or before[last] not in self._control
        ):
            last -= 1  # so far the user's turn begins alike: the role is further ahead
        main = before[last:]
        if len(main) > _MAX_HEADER:
            return None
        headers = [main, self._prompt(talk[:3]), *self._after_results(), self._tail(talk, _FIRST, len(main))]
        cores = {core for header in headers if (core := self._core(header)) and len(core) <= _MAX_HEADER}
        longest = self._core(main)
        cores -= {
            longest[-n:] for n in range(1, len(longest))
        }  # the end of a header may open a user's turn too
        first = self._before(talk, _FIRST)[1]
        closer = next((token for token in ids[len(first) :] if token in self._control), None)
        openers = {*main, *question[-len(main) :], *first} & self._control - self._written(main) - {closer}
        return TurnHeaders(tuple(sorted(cores)), np.array(sorted(openers), np.int64), self._blanks)

    def _before(self, talk: Messages, text: str) -> tuple[list[int], list[int]]:
        """All ids of a conversation, and those before a text in it."""
        rendered = self._render(talk, False)
        encoding = self._tokenizer.encode(rendered, add_special_tokens=False)
        place = rendered.index(text)
        count = next(n for n, (_, end) in enumerate(encoding.offsets) if end > place)
        return encoding.ids, encoding.ids[:count]

    def _tail(self, talk: Messages, text: str, length: int) -> list[int]:
        """The header before an earlier answer: without what a template writes before the last alone."""
        before = self._before(talk, text)[1]
        last = max((n for n, token in enumerate(before) if token in self._control), default=len(before))
        return before[min(last, max(0, len(before) - length)) :]

    def _prompt(self, talk: Messages) -> list[int]:
        """What the generation prompt adds."""
        without = self._tokenizer.encode(self._render(talk, False), add_special_tokens=False).ids
        whole = self._tokenizer.encode(self._render(talk, True), add_special_tokens=False).ids
        return list(whole[len(without) :]) if whole[: len(without)] == without else []

    def _after_results(self) -> list[list[int]]:
        """The header of an answer that follows the result of a call."""
        try:
            answer = {"role": "assistant", "content": _SECOND}
            before = self._before([_USER, _CALLS, _RESULT, answer], _SECOND)[1]
        except Exception:  # the template has no such turns
            return []
        last = max((n for n, token in enumerate(before) if token in self._control), default=len(before))
        return [before[last:]]

    def _written(self, header: list[int]) -> set[int]:
        """Control ids that a template writes inside a rich answer: thoughts, channels, calls."""
        written: set[int] = set()
        for turn in (_THOUGHT, _CALLS):
            try:
                before = self._tokenizer.encode(self._render([_USER], True), add_special_tokens=False).ids
                whole = self._tokenizer.encode(
                    self._render([_USER, turn], False), add_special_tokens=False
                ).ids
            except Exception:  # the template has no such turn
                continue
            same = next(
                (n for n, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b), len(before)
            )
            rest = list(whole[same:])
            core = list(self._core(header))
            written |= set(rest[len(core) :] if rest[: len(core)] == core else rest) & self._control
        return written

    def _core(self, header: Sequence[int]) -> Ids:
        ids = list(header)
        while ids and ids[-1] in self._blanks:
            ids.pop()
        return tuple(ids)


def _renderer(folder: Path, kwargs: dict[str, Any]) -> Callable[[Messages, bool], str]:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    named: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            for key, token in json.loads((folder / file).read_bytes()).items():
                text = token.get("content") if isinstance(token, dict) else token
                if key.endswith("_token") and isinstance(text, str):
                    named[key] = text

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda _format: "2024-01-01"}
    template = environment.from_string((folder / "chat_template.jinja").read_text(encoding="utf-8"))

    def render(messages: Messages, prompt: bool) -> str:
        return template.render(messages=messages, add_generation_prompt=prompt, **named, **kwargs)

    return render


@dataclass
class TurnStarts:
    """Counts how trained spans begin and what they hold, over all rows."""

    header: TurnHeaders | None
    num_sound: int = 0
    num_odd: int = 0  # spans that begin elsewhere
    first_odd: str = ""
    num_opened: int = 0  # trained tokens that open a turn
    first_opened: str = ""

    @property
    def telling(self) -> bool:
        """Whether spans begin behind the header as a rule, so that one that does not is wrong."""
        return self.header is not None and self.num_sound > self.num_odd

    def add(self, batch: pa.RecordBatch, place: str, first: int) -> None:
        """Take the spans of one batch, whose rows begin at number ``first`` of ``place``."""
        if self.header is None:
            return
        ids, labels = lists(batch.column("input_ids")), lists(batch.column("labels"))
        if not np.array_equal(ids.offsets, labels.offsets):
            return
        trained = labels.values != IGNORE_INDEX
        ends = np.cumsum(pieces(batch).length)
        begin = np.zeros(len(trained) + 1, np.bool_)
        begin[0] = True
        begin[np.clip(ends, 0, len(trained))] = True  # where records begin
        before = np.concatenate([[False], trained[:-1]]) & ~begin[:-1] if len(trained) else trained
        starts = np.flatnonzero(trained & ~before)
        edges = np.concatenate([[0], ends])
        for start in starts.tolist():
            low = int(edges[np.searchsorted(edges, start, side="right") - 1])
            if low > 0 and start == low:
                continue  # a later part of a cut record
            if self._is_sound(ids.values, low, start):
                self.num_sound += 1
                continue
            self.first_odd = self.first_odd or _at(
                ids.offsets, start, place, first, "begins within a turn or in another's"
            )
            self.num_odd += 1
        opened = np.flatnonzero(trained & np.isin(ids.values, self.header.openers))
        if len(opened):
            self.first_opened = self.first_opened or _at(
                ids.offsets, int(opened[0]), place, first, "holds the opening of a turn"
            )
            self.num_opened += len(opened)

    def _is_sound(self, ids: NDArray[Any], low: int, start: int) -> bool:
        assert self.header is not None
        for _ in range(_MAX_BLANKS + 1):
            for header in self.header.headers:
                if start - len(header) >= low and tuple(ids[start - len(header) : start].tolist()) == header:
                    return True
            if start <= low or int(ids[start - 1]) not in self.header.blanks:
                return False
            start -= 1
        return False


def _at(offsets: NDArray[np.int64], place: int, where: str, first: int, what: str) -> str:
    row = int(np.searchsorted(offsets, place, side="right")) - 1
    return f"{where} {first + row:,} trains a span that {what}, at position {place - int(offsets[row]):,}"
