"""From a conversation to its layout: one analysis per shape, checked against the real rendering.

Shapes repeat, so a template runs a handful of times per shape; after that a record costs one rendering to
compare with, or none where the template cannot react to its texts (``template_analysis``). A record whose
filled placeholders differ from its rendering is one whose texts change what the template writes (Qwen3
searches for ``</think>``). Such a record is analysed alone, by its real text, and refused with a reason where
the spans stay uncertain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from datamix.tokenize.call_parts import masked_parts, without
from datamix.tokenize.chat_template import ChatTemplate, TemplateFailure
from datamix.tokenize.conversation import Conversation, MessageForm, to_message
from datamix.tokenize.loss_spans import LossSpan, RealTurnFinder, TurnFinder
from datamix.tokenize.placeholders import PlaceholderRender, Rendering
from datamix.tokenize.segments import Layout, build_layout, with_ending
from datamix.tokenize.special_tokens import ControlTokens, unescape
from datamix.tokenize.template_analysis import text_dependence
from datamix.tokenize.template_traits import template_traits

Purpose = Literal["all", "assistant", "last_assistant", "final_answer", "prompt", "completion", "document"]
_MAX_SHAPES = 1024
_MAX_RENDERINGS = 4096  # of the beginnings of conversations: a few kilobytes each


@dataclass(frozen=True)
class RenderedChat:
    """A layout and the texts for its slots."""

    layout: Layout
    texts: list[str]
    unwritten: frozenset[str] = frozenset()  # what the template omits: "unwritten" a text, "unwritten_tools"


@dataclass
class _ShapePlan:
    """The layout of all conversations of one shape."""

    rendering: Rendering
    layout: Layout
    form: MessageForm
    unwritten: frozenset[str]
    is_confirmed: bool = False  # a record of this shape was rendered too, and was equal


@dataclass(frozen=True)
class _LayoutInput:
    """What one layout is made from."""

    conversation: Conversation
    purpose: Purpose
    num_prompt_turns: int
    placeholders: PlaceholderRender
    full: Rendering


class ChatRenderer:
    """Makes layouts of conversations with one chat template."""

    def __init__(
        self,
        template: ChatTemplate,
        control: ControlTokens,
        eos_token_id: int | None,
        restarts: bool,
        mask: Sequence[str] = (),
    ) -> None:
        self._template = template
        self._control = control
        self.dependence = text_dependence(template.tree)
        self._eos = eos_token_id
        self._restarts = restarts  # see ``build_layout``
        self._mask = mask  # parts of calls that are not trained: see ``call_parts``
        self.traits = template_traits(template, control, eos_token_id)
        self._plans: dict[Any, _ShapePlan | str] = {}  # or why the template fails
        self._renderings: dict[Any, Rendering] = {}
        self._trained_parts: dict[
            int, tuple[Layout, Layout]
        ] = {}  # by id of the first, which keeps the id valid

    def render(self, conversation: Conversation, purpose: Purpose, num_prompt_turns: int = 0) -> RenderedChat:
        """The layout of a conversation for a purpose; ``num_prompt_turns`` counts for completions only.

        Raises TemplateFailure where the template refuses it or the trained span cannot be determined.
        """
        texts = conversation.slots()
        plan = self._plan(conversation, purpose, num_prompt_turns)
        if isinstance(plan, str):
            raise TemplateFailure(plan)
        if plan.is_confirmed and self.dependence.ignores(texts):
            return RenderedChat(plan.layout, texts, plan.unwritten)
        if plan.rendering.fill(texts) == self._render_text(conversation, purpose, plan.form):
            plan.is_confirmed = True
            return RenderedChat(plan.layout, texts, plan.unwritten)
        return RenderedChat(self._render_alone(conversation, purpose, num_prompt_turns, plan.form), [])

    def trained_part(self, layout: Layout) -> Layout:
        """Only the trained entries of a layout: of a completion, what follows the prompt."""
        cached = self._trained_parts.get(id(layout))
        if cached is None:
            cached = self._trained_parts[id(layout)] = (layout, layout.part(trained=True))
        return cached[1]

    def _render_text(self, conversation: Conversation, purpose: Purpose, form: MessageForm) -> str:
        messages = [to_message(turn, str, str, form) for turn in conversation.turns]
        return self._template.render(messages, conversation.tools, conversation.kwargs, purpose == "prompt")

    def _plan(self, conversation: Conversation, purpose: Purpose, num_prompt_turns: int) -> _ShapePlan | str:
        key = (purpose, num_prompt_turns, conversation.shape())
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= _MAX_SHAPES:
                self._plans.clear()
                self._trained_parts.clear()
            failures: list[str] = []
            for form in self._forms(conversation):
                try:
                    plan = self._analyse(conversation, purpose, num_prompt_turns, form)
                    break
                except TemplateFailure as failure:
                    failures.append(str(failure))
            self._plans[key] = plan = failures[0] if plan is None else plan
        return plan

    def _forms(self, conversation: Conversation) -> Iterator[MessageForm]:
        """The forms in which the template may be able to read a conversation, the usual one first."""
        usual = self.traits.form
        answers = [turn for turn in conversation.turns if turn.role == "assistant"]
        as_text = (False, True) if any(turn.calls for turn in answers) else (False,)
        lacks_content = any(turn.content is None for turn in answers)
        missing: tuple[Literal["absent", "null", "empty"], ...] = ("absent", "null", "empty")
        for content in missing if lacks_content else missing[:1]:
            for arguments in as_text:
                yield usual._replace(arguments_as_text=arguments, missing_content=content)

    def _analyse(
        self, conversation: Conversation, purpose: Purpose, num_prompt_turns: int, form: MessageForm
    ) -> _ShapePlan:
        if len(self._renderings) >= _MAX_RENDERINGS:
            self._renderings.clear()
        placeholders = PlaceholderRender(
            conversation, self._template, self._control, True, form, self._renderings
        )
        full = placeholders.render(len(conversation.turns), purpose == "prompt")
        find = TurnFinder(placeholders, full, self._control, self.traits).spans
        layout = self._layout(_LayoutInput(conversation, purpose, num_prompt_turns, placeholders, full), find)
        unwritten = {"unwritten"} if placeholders.leaves_out(full) else set()
        if conversation.tools and not self.traits.writes_tools:
            unwritten.add("unwritten_tools")
        return _ShapePlan(full, layout, form, frozenset(unwritten))

    def _render_alone(
        self, conversation: Conversation, purpose: Purpose, num_prompt_turns: int, form: MessageForm
    ) -> Layout:
        """The layout of one conversation by its real texts."""
        escaped = PlaceholderRender(conversation, self._template, self._control, False, form)
        full = escaped.render(len(conversation.turns), purpose == "prompt")
        if unescape(full.text) != self._render_text(conversation, purpose, form):
            has_thought = any("</think>" in (turn.content or "") for turn in conversation.turns)
            raise TemplateFailure(_CUTS_THOUGHTS if has_thought and self.traits.cuts_thoughts else _REACTS)
        find = RealTurnFinder(escaped, full, self._control, self.traits).spans
        return self._layout(_LayoutInput(conversation, purpose, num_prompt_turns, escaped, full), find)

    def _layout(self, source: _LayoutInput, find: FindSpans) -> Layout:
        spans, ending = self._spans(source, find)
        layout = build_layout(source.full.pieces, spans, self._control, self._restarts)
        layout = self._weighted(layout, source, find, spans)
        if source.purpose == "document":
            ending = None if self._eos in layout.entries[-2:] else self._eos
        return layout if ending is None else with_ending(layout, ending, trained=True)

    def _spans(self, source: _LayoutInput, find: FindSpans) -> TrainedSpans:
        spans, ending = _SPANS[source.purpose](source, find)
        if self._mask and spans:
            spans = without(spans, masked_parts(source.placeholders, source.full, self._control, self._mask))
        return spans, ending

    def _weighted(
        self, layout: Layout, source: _LayoutInput, find: FindSpans, spans: list[tuple[int, int]]
    ) -> Layout:
        """The layout with the weights of the turns of its entries: an entry is of weight w if it is not trained without
        the turns of weight w."""
        turns = source.conversation.turns
        weights = [1.0] * len(layout.entries)
        for weight in sorted({turn.train for turn in turns if turn.role == "assistant" and turn.train}):
            others = [turn._replace(train=0.0) if turn.train == weight else turn for turn in turns]
            rest = replace(source, conversation=source.conversation.with_turns(others))
            without_them = build_layout(
                source.full.pieces, self._spans(rest, find)[0], self._control, self._restarts, spans
            )
            flags = zip(layout.trained, without_them.trained, strict=True)
            weights = [weight if a and not b else w for w, (a, b) in zip(weights, flags, strict=True)]
        return layout if set(weights) == {1.0} else replace(layout, weights=tuple(weights))


_REACTS = "the template reacts to control tokens inside the text of a turn"
_CUTS_THOUGHTS = (
    "the template cuts the thought (what is before </think>) out of the answer; name one that keeps it with "
    "`chat_template`"
)

FindSpans = Callable[[int], list[LossSpan]]
TrainedSpans = tuple[list[tuple[int, int]], int | None]  # [start, end) of each; a token to add at the end


def _prompt_spans(source: _LayoutInput, find: FindSpans) -> TrainedSpans:
    return [], None


def _document_spans(source: _LayoutInput, find: FindSpans) -> TrainedSpans:
    return [(0, len(source.full.text))], None


def _answer_spans(source: _LayoutInput, find: FindSpans) -> TrainedSpans:
    """Every assistant turn, or only the last (that makes no calls), except those marked as not trained."""
    turns = [at for at, turn in enumerate(source.conversation.turns) if turn.role == "assistant"]
    if source.purpose == "final_answer":
        turns = [at for at in turns if not source.conversation.turns[at].calls]
    if source.purpose != "assistant":
        turns = turns[-1:]
    spans = [span for at in turns if source.conversation.turns[at].train != 0 for span in find(at)]
    if any(first.end > second.start for first, second in pairwise(spans)):
        raise TemplateFailure("the template writes assistant turns out of order")
    return [(span.start, span.end) for span in spans], spans[-1].ending if spans else None


def _all_spans(source: _LayoutInput, find: FindSpans) -> TrainedSpans:
    """Everything except the assistant turns that the data marks as not trained."""
    turns = source.conversation.turns
    trained: list[tuple[int, int]] = []
    at, ending = 0, None
    for place, turn in enumerate(turns):
        if turn.role != "assistant" or (turn.train != 0 and place + 1 < len(turns)):
            continue
        for span in find(place):
            if turn.train == 0:
                trained.append((at, span.start))
                at = span.end
            else:
                ending = span.ending
    return [*trained, (at, len(source.full.text))], ending


def _completion_span(source: _LayoutInput, find: FindSpans) -> TrainedSpans:
    """From the end of the prompt to the end of the last turn."""
    prompt = source.placeholders.render(source.num_prompt_turns, generation_prompt=True)
    if not source.full.text.startswith(prompt.text):
        raise TemplateFailure("the rendering of prompt and completion does not begin with that of the prompt")
    last = find(len(source.conversation.turns) - 1)
    if not last or last[-1].end <= len(prompt.text):
        raise TemplateFailure("the template writes nothing of a completion")
    return [(len(prompt.text), last[-1].end)], last[-1].ending


_SPANS: dict[Purpose, Callable[[_LayoutInput, FindSpans], TrainedSpans]] = {
    "prompt": _prompt_spans,
    "document": _document_spans,
    "assistant": _answer_spans,
    "last_assistant": _answer_spans,
    "final_answer": _answer_spans,
    "all": _all_spans,
    "completion": _completion_span,
}
