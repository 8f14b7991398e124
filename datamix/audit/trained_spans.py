"""Whether the trained spans of conversations look like an assistant's turns: where they begin, end, and what they hold.

Ends need the ids alone: in templates that close a turn with a control token, every trained span that stops inside its
record stops at one. For beginnings the chat template beside the rows is rendered here for a small conversation, and
tokenized, so that the ids that open an assistant's turn are known without the code that made the rows: a span is sound
where these ids, and nothing but what the template itself writes in front of an answer, come before it. Where a template
opens or closes turns with plain text, nothing is concluded. Cost: the tokenizer is loaded once; one pass over the ids.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from datamix.audit.findings import Findings, Unchecked
from datamix.audit.row_laws import lists, pieces, row_and_position
from datamix.core.arrays import IGNORE_INDEX

_FIRST, _SECOND = "ANSWER-ONE", "ANSWER-TWO"  # unlike anything that a template writes
_USER = {"role": "user", "content": "QUESTION-ONE"}
_ARGUMENTS = {"a": 1}
_CALL = {"type": "function", "function": {"name": "f", "arguments": _ARGUMENTS}, "id": "call0000a"}
_CALLS: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "name": "f", "content": "RESULT", "tool_call_id": "call0000a"}
_THOUGHT = {"role": "assistant", "content": _SECOND, "reasoning_content": "THOUGHT", "thinking": "THOUGHT"}
_MAX_HEADER = 16  # tokens; more is a template that opens turns with plain text
_MAX_BLANKS = 3  # tokens of white space between a header and an answer

Messages = Sequence[dict[str, Any]]
Ids = tuple[int, ...]


@dataclass(frozen=True)
class TurnHeaders:
    """The ids that come before an answer, and those that open the turns of others."""

    headers: tuple[Ids, ...]  # without the white space at their end
    openers: NDArray[np.int64]
    blanks: frozenset[int]  # ids of white space alone
    first: int  # opens an assistant's turn
    bare: frozenset[
        int
    ]  # control ids that begin a call where the template writes it behind a question without a header

    def precede(self, ids: NDArray[Any], low: int, start: int) -> bool:
        """Whether a header, and white space behind it, ends at ``start``, in a record that begins at ``low``."""
        for _ in range(_MAX_BLANKS + 1):
            for header in self.headers:
                if start - len(header) >= low and tuple(ids[start - len(header) : start].tolist()) == header:
                    return True
            if start <= low or int(ids[start - 1]) not in self.blanks:
                return False
            start -= 1
        return False

    def begins_bare(self, ids: NDArray[Any], start: int) -> bool:
        """Whether a call that has no header begins at ``start``, white space before it."""
        first = (int(i) for i in ids[start : start + _MAX_BLANKS + 1] if int(i) not in self.blanks)
        return next(first, -1) in self.bare


def turn_headers(folder: Path, kwargs: dict[str, Any] | None) -> TurnHeaders | None:
    """The headers by the tokenizer and template in a folder; None where the template opens turns with plain text."""
    try:
        return _Probe(folder, kwargs or {}).headers()
    except Exception:  # a template or tokenizer of any kind: other checks say that they are whole
        return None


def control_ids(tokenizer: Path) -> NDArray[np.int64]:
    """Ids of the control tokens of a ``tokenizer.json``, sorted; none where it is damaged, which another check reports."""
    try:
        added = orjson.loads(tokenizer.read_bytes())["added_tokens"]
        return np.array(sorted(t["id"] for t in added if t.get("special")), np.int64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return np.zeros(0, np.int64)


def _calls(name: str) -> list[dict[str, Any]]:
    """An assistant's turn that calls a function, in the forms that templates read."""
    text = json.dumps(_ARGUMENTS)
    turns = []
    for arguments, content in ((_ARGUMENTS, ""), (text, ""), (text, None)):
        turn = copy.deepcopy(_CALLS) | {"content": content}
        turn["tool_calls"][0]["function"] = {"name": name, "arguments": arguments}
        turns.append(turn)
    return turns


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
        blank = (n for name, n in names if not name.strip("ĊĠ\u2581 \n\t\r") or name == "<0x0A>")
        self._blanks = frozenset(blank)

    def headers(self) -> TurnHeaders | None:
        answers = [{"role": "assistant", "content": text} for text in (_FIRST, _SECOND)]
        talk = [_USER, answers[0], {"role": "user", "content": "QUESTION-TWO"}, answers[1]]
        before, question = self._before(talk, _SECOND), self._before(talk, "QUESTION-TWO")
        last = self._last_control(before)
        if last == len(before):
            return None
        while last > 0 and (
            question[last - len(before) :] == before[last:] or before[last] not in self._control
        ):
            last -= 1  # so far the user's turn begins alike: the role is further ahead
        main, first = before[last:], self._before(talk, _FIRST)
        if len(main) > _MAX_HEADER:
            return None
        # An earlier answer's header lacks what a template writes before the last alone.
        headers = [main, first[min(self._last_control(first), max(0, len(first) - len(main))) :]]
        without, whole = self._ids(talk[:3]), self._ids(talk[:3], prompt=True)
        if whole[: len(without)] == without:
            headers.append(whole[len(without) :])
        opener = next((token for token in max(headers, key=len) if token in self._control), main[0])
        headers += self._other_headers(opener)
        cores = {core for header in headers if (core := self._core(header)) and len(core) <= _MAX_HEADER}
        longest = self._core(main)
        # The end of a header may open a user's turn too.
        cores -= {longest[-n:] for n in range(1, len(longest))}
        closer = next((token for token in self._ids(talk)[len(first) :] if token in self._control), None)
        openers = {*main, *question[-len(main) :], *first} & self._control - self._answer_ids(main) - {closer}
        ids = np.array(sorted(openers), np.int64)
        return TurnHeaders(tuple(sorted(cores)), ids, self._blanks, opener, self._bare_calls(opener))

    def _other_headers(self, opener: int) -> list[list[int]]:
        """What comes before an answer to a result, content that is written behind a result, and a thought."""
        headers = []
        for calls in _calls("f"):
            answer = {"role": "assistant", "content": _SECOND}
            for talk in ([_USER, calls, _RESULT, answer], [_USER, calls | {"content": _SECOND}, _RESULT]):
                try:
                    before = self._before(talk, _SECOND)
                except Exception:  # the template has no calls, or reads them in another form
                    continue
                headers.append(before[self._last_control(before) :])
        for talk in ([_USER, _THOUGHT], [_USER, _THOUGHT, _USER | {"content": "QUESTION-TWO"}]):
            try:
                before = self._before(talk, "THOUGHT")
            except Exception:  # the template writes no thoughts
                continue
            if opener in before:
                headers.append(before[len(before) - 1 - before[::-1].index(opener) :])
        return headers

    def _bare_calls(self, opener: int) -> frozenset[int]:
        """Control ids between a later question and its call, where no header is between them (DeepSeek V3)."""
        later, bare = _USER | {"content": "QUESTION-TWO"}, set[int]()
        for calls, again in zip(_calls("f"), _calls("SECOND-CALL"), strict=True):
            try:
                answer = {"role": "assistant", "content": _FIRST}
                rendered = self._render([_USER, calls, _RESULT, answer, later, again], False)
                between = rendered.split("QUESTION-TWO")[1].split("SECOND-CALL")[0]
            except Exception:  # the template has no calls, or reads them in another form
                continue
            ids = set(self._tokenizer.encode(between, add_special_tokens=False).ids)
            bare |= set() if opener in ids else ids & self._control
        return frozenset(bare)

    def _ids(self, talk: Messages, prompt: bool = False) -> list[int]:
        ids: list[int] = self._tokenizer.encode(self._render(talk, prompt), add_special_tokens=False).ids
        return ids

    def _before(self, talk: Messages, text: str) -> list[int]:
        """The ids of a conversation before a text in it."""
        rendered = self._render(talk, False)
        encoding, place = self._tokenizer.encode(rendered, add_special_tokens=False), rendered.index(text)
        count = next(n for n, (_, end) in enumerate(encoding.offsets) if end > place)
        return list(encoding.ids[:count])

    def _last_control(self, ids: Sequence[int]) -> int:
        """Where the last control token is; the length where there is none."""
        return max((n for n, token in enumerate(ids) if token in self._control), default=len(ids))

    def _answer_ids(self, header: list[int]) -> set[int]:
        """Control ids that a template writes inside a rich answer: thoughts, channels, calls."""
        written: set[int] = set()
        for turn in (_THOUGHT, _CALLS):
            try:
                before, whole = self._ids([_USER], prompt=True), self._ids([_USER, turn])
            except Exception:  # the template has no such turn
                continue
            pairs = enumerate(zip(before, whole, strict=False))
            rest = whole[next((n for n, (a, b) in pairs if a != b), len(before)) :]
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


def masked_within_turns(batch: pa.RecordBatch, control: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Rows of a recipe that trains everything in which more is masked than first tokens and whole turns, ``[num_rows]``.

    A turn that the data marks as not trained is masked to its end, which is a control token.
    """
    ids, labels = lists(batch.column("input_ids")), lists(batch.column("labels"))
    rows = np.zeros(batch.num_rows, np.bool_)
    if not np.array_equal(ids.offsets, labels.offsets) or not len(ids.values):
        return rows
    masked = labels.values == IGNORE_INDEX
    edges = np.concatenate([[0], np.cumsum(pieces(batch).length)])  # of records
    starts = np.zeros(len(masked) + 1, np.bool_)
    starts[np.clip(edges, 0, len(masked))] = True
    ends = np.flatnonzero(masked & (~np.append(masked[1:], False) | starts[1:]) & ~starts[:-1])
    odd = ends[~np.isin(ids.values[ends], control)]
    rows[np.searchsorted(ids.offsets, odd, side="right") - 1] = True
    return rows


class TrainedSpans:
    """Counts how trained spans begin and end and what they hold, over all rows."""

    def __init__(self, control: NDArray[np.int64], headers: TurnHeaders | None) -> None:
        self._control, self._headers = control, headers
        self._num_spans = 0  # that stop inside their record
        self._num_sound = 0  # that begin behind a header
        self._odd_ends = Findings("masks")  # stop at no control token
        self._odd_starts = Findings("masks")  # begin elsewhere
        self._opened = Findings("masks")  # trained tokens that open a turn

    def add(self, batch: pa.RecordBatch, place: str, first: int) -> None:
        """Take the spans of one batch, whose rows begin at number ``first`` of ``place``."""
        ids, labels = lists(batch.column("input_ids")), lists(batch.column("labels"))
        if not np.array_equal(ids.offsets, labels.offsets):
            return

        def where(position: int, problem: str) -> str:
            row, position = row_and_position(ids.offsets, position)
            return f"{place} {first + row:,} trains a span that {problem}, at position {position:,}"

        trained = labels.values != IGNORE_INDEX
        edges = np.concatenate([[0], np.cumsum(pieces(batch).length)])  # of records
        border = np.zeros(len(trained) + 1, np.bool_)
        border[np.clip(edges, 0, len(trained))] = True
        stops = np.flatnonzero(trained & ~np.append(trained[1:], False) & ~border[1:])
        self._num_spans += len(stops)
        odd = stops[~np.isin(ids.values[stops], self._control)]
        if (
            self._headers is not None
        ):  # a turn that the template does not close before it opens another of the assistant's
            odd = odd[ids.values[odd + 1] != self._headers.first]
        self._odd_ends.add_first(odd, lambda stop: where(stop, "ends within a turn"))
        if self._headers is None or not len(trained):
            return
        starts = np.flatnonzero(trained & ~(np.append(False, trained[:-1]) & ~border[:-1]))
        lows = edges[np.searchsorted(edges, starts, side="right") - 1]  # where the record of each begins
        starts, lows = starts[(lows == 0) | (starts != lows)], lows[(lows == 0) | (starts != lows)]
        pairs = zip(lows.tolist(), starts.tolist(), strict=True)
        sound = np.array([self._headers.precede(ids.values, *pair) for pair in pairs], np.bool_)
        if self._headers.bare:
            sound |= np.array([self._headers.begins_bare(ids.values, s) for s in starts.tolist()], np.bool_)
        self._num_sound += int(sound.sum())
        odd = starts[~sound]
        self._odd_starts.add_first(odd, lambda start: where(start, "begins within a turn or in another's"))
        opened = np.flatnonzero(trained & np.isin(ids.values, self._headers.openers))
        self._opened.add_first(opened, lambda position: where(position, "holds the opening of a turn"))

    def conclude(self, masks: Findings) -> tuple[str, list[Unchecked]]:
        """Add what is wrong to ``masks``; returns what was counted, in words, and what the template leaves open.

        Spans begin or end at control tokens as a rule, so that one that does not is wrong, where most do.
        """
        counted, left_open = "", []
        if self._num_spans > 2 * self._odd_ends.num:
            masks.extend(self._odd_ends)
            counted = f"; {self._num_spans:,} trained spans end where turns end"
        else:
            left_open.append(Unchecked("where trained spans end: the template ends turns with plain text"))
        masks.extend(self._opened)
        if self._num_sound > self._odd_starts.num:
            masks.extend(self._odd_starts)
            counted += f"; {self._num_sound:,} begin behind the header of an assistant's turn and hold no other turn's"
        else:
            left_open.insert(
                0, Unchecked("where trained spans begin: the template opens turns with plain text")
            )
        return counted, left_open
