"""From a conversation to its layout: skeletons by shape, checked against the real rendering.

Shapes repeat, so a template runs a handful of times per shape; then each record costs one rendering to compare with (or
none, where the template is known to be blind to what the texts say: see ``blind``). A record whose filled skeleton
differs from its rendering is one whose content changes how the template renders (Qwen3 looks for ``</think>``). Such a record is
analysed alone, by its real text, and refused with a reason where that cannot be done surely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from datamix.tokenize.chat_template import Renderer, TemplateFailure
from datamix.tokenize.conversation import Conversation, to_message
from datamix.tokenize.loss_spans import LossSpan, RealTurnFinder, TurnFinder
from datamix.tokenize.placeholders import PlaceholderRender, Rendering, template_traits
from datamix.tokenize.segments import Layout, build_layout, with_ending
from datamix.tokenize.special_tokens import ControlTokens, unescape
from datamix.tokenize.template_analysis import TextDependence

Purpose = Literal["all", "assistant", "last_assistant", "prompt", "completion", "document"]
_MAX_SHAPES = 1024
_MAX_RENDERINGS = 4096  # of the beginnings of conversations: a few kilobytes each


@dataclass(frozen=True)
class RenderedChat:
    """A layout and the texts that go into its slots."""

    layout: Layout
    texts: list[str]
    leaves_out: bool = False  # whether the template does not write something that a turn says


@dataclass
class _Shape:
    rendering: Rendering
    layout: Layout
    leaves_out: bool
    is_proven: bool = False  # by a record of it that was rendered too


class ChatRenderer:
    """Makes layouts of conversations with one chat template."""

    def __init__(
        self,
        renderer: Renderer,
        control: ControlTokens,
        sight: TextDependence,
        eos_token_id: int | None,
        restarts: bool,
    ) -> None:
        self._renderer = renderer
        self._control = control
        self._sight = sight
        self._eos = eos_token_id
        self._restarts = restarts
        self.habits = template_traits(renderer, control)
        self._shapes: dict[Any, _Shape | str] = {}
        self._renderings: dict[Any, Rendering] = {}
        self._parts: dict[int, tuple[Layout, Layout]] = {}  # by id of the layout, which is held

    def draw(self, conversation: Conversation, purpose: Purpose, given: int = 0) -> RenderedChat:
        """The layout of a conversation for a purpose; ``given``: for completions, the number of turns of the prompt.

        Raises TemplateFailure where the template refuses it or the trained span cannot be determined.
        """
        texts = conversation.slots()
        shape = self._shape(conversation, purpose, given)
        if isinstance(shape, str):
            raise TemplateFailure(shape)
        if shape.is_proven and self._sight.is_blind_to(texts):
            return RenderedChat(shape.layout, texts, shape.leaves_out)
        if shape.rendering.fill(texts) == self._render(conversation, purpose):
            shape.is_proven = True
            return RenderedChat(shape.layout, texts, shape.leaves_out)
        return RenderedChat(self._draw_alone(conversation, purpose, given), [])

    def trained_part(self, layout: Layout) -> Layout:
        """Only the trained entries of a layout: of a completion, what follows the prompt."""
        known = self._parts.get(id(layout))
        if known is None:
            known = self._parts[id(layout)] = (layout, layout.part(trained=True))
        return known[1]

    def _render(self, conversation: Conversation, purpose: Purpose) -> str:
        messages = [to_message(turn, str, str) for turn in conversation.turns]
        return self._renderer.render(messages, conversation.tools, conversation.kwargs, purpose == "prompt")

    def _shape(self, conversation: Conversation, purpose: Purpose, given: int) -> _Shape | str:
        key = (purpose, given, conversation.shape())
        known = self._shapes.get(key)
        if known is None:
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
                self._parts.clear()
            known = self._shapes[key] = self._analyse(conversation, purpose, given)
        return known

    def _analyse(self, conversation: Conversation, purpose: Purpose, given: int) -> _Shape | str:
        try:
            if len(self._renderings) >= _MAX_RENDERINGS:
                self._renderings.clear()
            sketch = PlaceholderRender(
                conversation, self._renderer, self._control, slots=True, known=self._renderings
            )
            full = sketch.render(len(conversation.turns), purpose == "prompt")
            find = TurnFinder(sketch, full, self._control, self.habits).span
            layout = self._layout(_Job(conversation, purpose, given, sketch, full), find)
            return _Shape(full, layout, sketch.leaves_out(full))
        except TemplateFailure as failure:
            return str(failure)

    def _draw_alone(self, conversation: Conversation, purpose: Purpose, given: int) -> Layout:
        sketch = PlaceholderRender(conversation, self._renderer, self._control, slots=False)
        full = sketch.render(len(conversation.turns), purpose == "prompt")
        if unescape(full.text) != self._render(conversation, purpose):
            raise TemplateFailure("the template acts on control tokens inside what a turn says")
        find = RealTurnFinder(sketch, full, self._control, self.habits).span
        return self._layout(_Job(conversation, purpose, given, sketch, full), find)

    def _layout(self, job: _Job, find: Callable[[int], LossSpan | None]) -> Layout:
        spans, stops = _SPANS[job.purpose](job, find)
        layout = build_layout(job.full.pieces, spans, self._control, self._restarts)
        if self._eos is None or stops or (job.purpose == "document" and self._eos in layout.entries[-2:]):
            return layout
        return with_ending(layout, self._eos, trained=True)


@dataclass(frozen=True)
class _Job:
    """What one layout is made from."""

    conversation: Conversation
    purpose: Purpose
    given: int
    sketch: PlaceholderRender
    full: Rendering


Borders = tuple[
    list[tuple[int, int]], bool
]  # trained stretches, and whether the last ends with a token of its own
Find = Callable[[int], LossSpan | None]


def _no_spans(job: _Job, find: Find) -> Borders:
    return [], True


def _whole(job: _Job, find: Find) -> Borders:
    return [(0, len(job.full.text))], False


def _answers(job: _Job, find: Find) -> Borders:
    """Every assistant turn, or only the last, but those that the data marks as not trained."""
    turns = [at for at, turn in enumerate(job.conversation.turns) if turn.role == "assistant"]
    if job.purpose == "last_assistant":
        turns = turns[-1:]
    spans = [find(at) for at in turns if job.conversation.turns[at].train is not False]
    return _joined([span for span in spans if span is not None])


def _all_but(job: _Job, find: Find) -> Borders:
    """Everything but the assistant turns that the data marks as not trained."""
    turns = job.conversation.turns
    spans, at, stops = [], 0, True
    for place, turn in enumerate(turns):
        if turn.role != "assistant" or (turn.train is not False and place + 1 < len(turns)):
            continue
        span = find(place)
        if span is not None and turn.train is False:
            spans.append((at, span.start))
            at = span.end
        elif span is not None:
            stops = span.stops
    return [*spans, (at, len(job.full.text))], stops


def _completion(job: _Job, find: Find) -> Borders:
    """From the end of the prompt to the end of the last turn."""
    prompt = job.sketch.render(job.given, generation_prompt=True)
    if not job.full.text.startswith(prompt.text):
        raise TemplateFailure("the rendering of prompt and completion does not begin with that of the prompt")
    last = find(len(job.conversation.turns) - 1)
    if last is None or last.end <= len(prompt.text):
        raise TemplateFailure("the template writes nothing of a completion")
    return [(len(prompt.text), last.end)], last.stops


def _joined(spans: list[LossSpan]) -> Borders:
    if any(first.end > second.start for first, second in pairwise(spans)):
        raise TemplateFailure("the template writes assistant turns out of order")
    return [(span.start, span.end) for span in spans], not spans or spans[-1].stops


_SPANS: dict[Purpose, Callable[[_Job, Find], Borders]] = {
    "prompt": _no_spans,
    "document": _whole,
    "assistant": _answers,
    "last_assistant": _answers,
    "all": _all_but,
    "completion": _completion,
}
