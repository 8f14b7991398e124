"""What a chat template does with short conversations: how it ends a turn, what it writes, what it can read.

The traits are derived once per template from about a dozen renderings (half a millisecond). They answer what
no single rendering of a record can: whether the control token behind a call closes the call (GLM-4.5's
``</tool_call>``) or the turn (gpt-oss's ``<|call|>``), and which token stops an answer that is the last turn
where the template relies on the opener of the next one (``<|user|>``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from datamix.tokenize.chat_template import ChatTemplate, TemplateFailure
from datamix.tokenize.conversation import USUAL_FORM, ChatTurn, Conversation, MessageForm
from datamix.tokenize.placeholders import Piece, PlaceholderRender, Rendering
from datamix.tokenize.special_tokens import ControlTokens, TokenMatch

_QUESTION, _ANSWER = ChatTurn("user", "q"), ChatTurn("assistant", "a")
_CALLS = [
    {"id": f"abcdefgh{n}", "type": "function", "function": {"name": f"f{n}", "arguments": {"x": "y"}}}
    for n in (0, 1)
]
_RICH_TURNS = (
    ChatTurn("assistant", "a", reasoning="r"),
    ChatTurn("assistant", "a", calls=_CALLS),
    ChatTurn("assistant", None, calls=_CALLS),
    ChatTurn("assistant", None, reasoning="r", calls=_CALLS),
)
_RESULT = ChatTurn("tool", "t", tool_call_id="abcdefgh0", name="f0")
_TOOL = {"type": "function", "function": {"name": "f0", "description": "d", "parameters": {}}}


@dataclass(frozen=True)
class TemplateTraits:
    """What a template does with ordinary turns."""

    form: MessageForm  # in which it reads content
    answer_stops: frozenset[str]  # control tokens that end an answer, in the middle or at the end
    inner: frozenset[str]  # control tokens inside a turn: between its reasoning, content and calls
    appended: frozenset[str]  # control tokens of a generation prompt that it writes without being asked
    end_of_answer: int | None  # the token to add where it ends a last answer with none
    end_of_call: int | None  # the same for a call
    header: str  # what the template writes before an answer: its generation prompt, where it has one
    writes_reasoning: bool
    writes_calls: bool  # of calls without an id: those parsed from inline tags have none
    writes_tools: bool
    splits_thoughts: bool  # it reads ``thought</think>answer`` in a content as reasoning
    cuts_thoughts: bool  # it removes what is before ``</think>`` in a content

    def stop_end(
        self, after: str, tail: int, matches: list[TokenMatch], is_last: bool, continues: bool = False
    ) -> int | None:
        """Where the stop of a turn ends in ``after``, the constant text behind the turn's last text.

        The first ``tail`` characters of ``after`` are the turn's: the template writes them also when the turn
        is the last. The last control token there that is no inner one is the stop; where there is none, the
        token that follows at once is (the opener of the next turn), but not the opener of another assistant
        turn that ``continues`` this one. None where neither exists.
        """
        tail = min((m.start for m in matches if m.start < tail < m.end), default=tail)
        stops = [m.end for m in matches if m.end <= tail and self._is_stop(m.token.text)]
        if stops:
            return stops[-1]
        following = next((m for m in matches if m.start >= tail), None)
        if is_last or following is None or after[tail : following.start].strip():
            return None
        return None if continues and self.header.startswith(following.token.text) else following.end

    def _is_stop(self, token: str) -> bool:
        return token not in self.appended and (token in self.answer_stops or token not in self.inner)


def template_traits(
    template: ChatTemplate, control: ControlTokens, eos_token_id: int | None
) -> TemplateTraits:
    """Derive the traits of a template; ``eos_token_id`` ends turns for which it has no token at all."""
    probe = _Probe(template, control, USUAL_FORM)
    plain = probe.render(_QUESTION, _ANSWER)
    if plain is None or not _slots_of(plain, 1):
        parts = _Probe(template, control, MessageForm(content_parts=True))
        rendered = parts.render(_QUESTION, _ANSWER)
        if rendered is not None and _slots_of(rendered, 1):
            probe, plain = parts, rendered
    thought = ChatTurn("assistant", "a", reasoning="r")
    called = ChatTurn("assistant", None, calls=_CALLS[:1])
    without_id = [{name: value for name, value in _CALLS[0].items() if name != "id"}]
    inline = probe.texts(_QUESTION, ChatTurn("assistant", "r</think>a"))
    fields = probe.texts(_QUESTION, thought)
    after_answer, after_call = probe.follower(_ANSWER, _QUESTION), probe.follower(called, _RESULT)
    appended = _appended(plain, control)
    return TemplateTraits(
        form=probe.form,
        answer_stops=_answer_stops(probe, plain, appended),
        inner=probe.inner,
        appended=appended,
        end_of_answer=eos_token_id if after_answer is None else after_answer.token.id,
        end_of_call=eos_token_id if after_call is None else after_call.token.id,
        header=_header(probe, plain),
        writes_reasoning=_writes(probe.render(_QUESTION, thought), 2),
        writes_calls=_writes(probe.render(_QUESTION, ChatTurn("assistant", None, calls=without_id)), 1),
        writes_tools=probe.texts(_QUESTION, _ANSWER) != probe.texts(_QUESTION, _ANSWER, tools=True),
        splits_thoughts=inline is not None and inline == fields,
        cuts_thoughts=inline is not None and inline == probe.texts(_QUESTION, _ANSWER),
    )


@dataclass(frozen=True)
class _Probe:
    """Renders short conversations with one template; None where it refuses them."""

    template: ChatTemplate
    control: ControlTokens
    form: MessageForm

    def render(self, *turns: ChatTurn, generation_prompt: bool = False) -> Rendering | None:
        """With sentinels in the slots."""
        try:
            rendering = self._placeholders(turns, True).render(len(turns), generation_prompt)
            rendering.slots()
        except TemplateFailure:
            return None
        return rendering

    def texts(self, *turns: ChatTurn, tools: bool = False) -> str | None:
        """With the texts themselves, control tokens included."""
        try:
            messages: list[dict[str, Any]] = self._placeholders(turns, False).messages
            for message, turn in zip(messages, turns, strict=True):
                if isinstance(message.get("content"), str):
                    message["content"] = turn.content
            return self.template.render(messages, [_TOOL] if tools else None, {}, False)
        except TemplateFailure:
            return None

    def follower(self, turn: ChatTurn, following: ChatTurn) -> TokenMatch | None:
        """The control token that follows a turn in which the template writes no stop, where there is one."""
        alone, full = self.render(_QUESTION, turn), self.render(_QUESTION, turn, following, _ANSWER)
        if alone is None or full is None or not _slots_of(alone, 1) or not _slots_of(full, 1):
            return None
        end = _slots_of(alone, 1)[-1].end
        tail = alone.text[end:]
        if not full.text.startswith(alone.text):
            return None
        if any(match.token.text not in self.inner for match in self.control.find(tail)):
            return None
        added = full.text[len(alone.text) :]
        first = next(iter(self.control.find(added)), None)
        return first if first is not None and not added[: first.start].strip() else None

    @cached_property
    def inner(self) -> frozenset[str]:
        """The control tokens before the last text of a turn: around its reasoning, content and calls."""
        prompt = self.render(_QUESTION, generation_prompt=True)
        inner: set[str] = set()
        for turn in _RICH_TURNS:
            rendering = self.render(_QUESTION, turn)
            if rendering is None or not _slots_of(rendering, 1):
                continue
            slots, text = _slots_of(rendering, 1), rendering.text
            shared = common_prefix(prompt.text, text) if prompt is not None else slots[0].start
            constants = [text[before.end : after.start] for before, after in pairwise(slots)]
            for constant in (text[min(shared, slots[0].start) : slots[0].start], *constants):
                inner.update(match.token.text for match in self.control.find(constant))
        return frozenset(inner)

    def _placeholders(self, turns: tuple[ChatTurn, ...], slots: bool) -> PlaceholderRender:
        conversation = Conversation(turns, None, None)
        return PlaceholderRender(conversation, self.template, self.control, slots, self.form)


def _answer_stops(probe: _Probe, plain: Rendering | None, appended: frozenset[str]) -> frozenset[str]:
    """The tokens that end an answer: when it is the last turn, and when a question follows."""
    ends: set[str] = set()
    full = probe.render(_QUESTION, _ANSWER, _QUESTION, _ANSWER)
    if plain is not None and _slots_of(plain, 1):
        tail = plain.text[_slots_of(plain, 1)[-1].end :]
        matches = [m for m in probe.control.find(tail) if m.token.text not in appended]
        ends.update(match.token.text for match in matches[-1:])
        if full is not None and _slots_of(full, 1) and _slots_of(full, 2):
            middle = full.text[_slots_of(full, 1)[-1].end : _slots_of(full, 2)[0].start]
            shared = common_prefix(tail, middle)
            tokens = probe.control.find(middle)
            inside = [m for m in tokens if m.end <= shared and m.token.text not in appended]
            ends.update(match.token.text for match in inside[-1:] or tokens[:1])
    return frozenset(ends)


def _appended(plain: Rendering | None, control: ControlTokens) -> frozenset[str]:
    """Control tokens of a generation prompt behind the last answer: the end of what is before every answer."""
    if plain is None or not _slots_of(plain, 1):
        return frozenset()
    answer = _slots_of(plain, 1)
    tail, before = plain.text[answer[-1].end :], plain.text[: answer[0].start]
    matches = control.find(tail)
    before = before.rstrip()  # Jinja drops the newline at the end of a template
    first = next((m for m in matches[1:] if before.endswith(tail[m.start :].rstrip())), None)
    return frozenset(m.token.text for m in matches if first is not None and m.start >= first.start)


def _header(probe: _Probe, plain: Rendering | None) -> str:
    prompt, bare = probe.render(_QUESTION, generation_prompt=True), probe.render(_QUESTION)
    if plain is None or prompt is None or bare is None or not _slots_of(plain, 1):
        return ""
    written = plain.text[: _slots_of(plain, 1)[0].start]
    if prompt.text.startswith(bare.text) and prompt.text != bare.text:
        header = prompt.text[len(bare.text) :]
        return header if written.endswith(header) else ""
    header = written[len(bare.text) :]
    return header if written.startswith(bare.text) and header.strip() else ""


def _slots_of(rendering: Rendering, turn: int) -> list[Piece]:
    return [piece for piece in rendering.slots() if piece.turn == turn]


def _writes(rendering: Rendering | None, slot: int) -> bool:
    if rendering is None:
        return False
    return any(piece.slot is not None and piece.slot.index == slot for piece in rendering.slots())


def common_prefix(a: str, b: str) -> int:
    """The number of leading characters that two texts share."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # bisect on equality of slices: compares in C
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
