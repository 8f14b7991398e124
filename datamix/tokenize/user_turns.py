"""Prompts that let a model write a user's turn, for any chat template: the rendering cut at a marker where the user's text stands.

Magpie (Xu et al., 2024) gives an aligned model the beginning of a user's turn and lets it go on. The prefix is the template's own: a
conversation that ends with a marker as the user's text is rendered and cut at the marker, so a system turn, earlier turns, blanks
and newlines are as the template writes them. What the template writes behind the marker tells what ends an instruction.

Cost: a rendering a prompt, 10 to 50 microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import orjson

from datamix.core.errors import RecipeError
from datamix.tokenize.chat_template import ChatTemplate, TemplateFailure
from datamix.tokenize.special_tokens import control_tokens
from datamix.tokenize.template_traits import TemplateTraits, template_traits
from datamix.tokenize.tokenizer_files import TokenizerFiles, read_tokenizer_json

_MARKER, _REPLY = "Xq7markerX", "Xq7replyX"  # plain letters: nothing a template strips, escapes or looks for

Messages = Sequence[Mapping[str, Any]]


class UserTurns:
    """The prompts and stops of one tokenizer's chat template. Raises RecipeError where it has none."""

    def __init__(self, files: TokenizerFiles) -> None:
        if files.chat_template is None:
            raise RecipeError(
                f"tokenizer: {files.name} has no chat template, which gives the beginning of a user's turn. Name the "
                "tokenizer of an instruct model, or put its chat_template.jinja beside tokenizer.json."
            )
        self._files = files
        self.bos = dict(files.named_tokens).get("bos_token", "")
        spec = orjson.loads(read_tokenizer_json(files))
        self._control = control_tokens(spec.get("added_tokens") or [])
        self._template = ChatTemplate(files.chat_template, files.named_tokens, {}, f"that of {files.name}")

    def opening(self, messages: Messages = ()) -> str:
        """Everything up to the text of a user's turn behind ``messages``. Raises RecipeError where the template cannot."""
        text = self._render([*messages, {"role": "user", "content": _MARKER}], False)
        before, marker, _ = text.rpartition(_MARKER)
        if not marker or _MARKER in before:
            raise self._unusable("does not write a user's text exactly once")
        return before

    def answering(self, messages: Messages) -> str:
        """A conversation up to the answer that follows."""
        return self._render(messages, True)

    def count(self, text: str) -> int:
        """Tokens of a prompt as written, control tokens read as such."""
        return len(self.encode(text))

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt as written."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def instruction_stops(self) -> tuple[str, ...]:
        """What ends a user's text, the surest first: hosts may take no more than four."""
        question, answer = {"role": "user", "content": _MARKER}, {"role": "assistant", "content": _REPLY}
        _, _, after = self._render([question, answer], False).partition(_MARKER)
        after = after.partition(_REPLY)[0]
        found = [match.token.text for match in self._control.find(after)]
        if not found:  # a template of plain text: the first line behind the user's
            found = [line.strip() for line in after.splitlines() if line.strip()][:1]
        return tuple(dict.fromkeys([*found[:2], *self.answer_stops]))

    @cached_property
    def answer_stops(self) -> tuple[str, ...]:
        """What ends an answer: the template's, and the token that the tokenizer names as the end."""
        stops = sorted(self._traits.answer_stops)
        eos = dict(self._files.named_tokens).get("eos_token")
        if not stops:  # plain text: the next user's turn
            turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": _REPLY}]
            _, _, after = self._render([*turns, {"role": "user", "content": _MARKER}], False).partition(
                _REPLY
            )
            lines = [line.strip() for line in after.partition(_MARKER)[0].splitlines() if line.strip()]
            stops = [line for line in lines if line != eos][:1]
        return tuple(dict.fromkeys([*stops, *([eos] if eos else [])]))

    def cut_leak(self, text: str) -> tuple[str, bool]:
        """A user's text without an answer that follows it, and whether there was one.

        ``"How?<|im_end|>\\nassistant\\nSo."`` and ``"How?\\nassistant\\nSo."`` (a host that drops control tokens) give ``"How?"``.
        """
        ends = [match.start for match in self._control.find(text)[:1]]
        ends += [at for stop in self.instruction_stops if (at := text.find(stop)) >= 0]
        if self._header_line is not None and (match := self._header_line.search(text)):
            ends.append(match.start())
        return (text[: min(ends)].strip(), True) if ends else (text.strip(), False)

    @cached_property
    def _header_line(self) -> re.Pattern[str] | None:
        """A line with nothing but what the template writes before an answer, control tokens aside."""
        question = [{"role": "user", "content": _MARKER}]
        bare, prompt = self._render(question, False), self._render(question, True)
        header = prompt[len(bare) :] if prompt.startswith(bare) else self._traits.header
        for match in reversed(self._control.find(header)):
            header = header[: match.start] + " " + header[match.end :]
        words = header.split()
        return (
            re.compile(rf"^[ \t]*{re.escape(words[0])}[ \t]*:?[ \t]*(\n|\Z)", re.MULTILINE) if words else None
        )

    @cached_property
    def _traits(self) -> TemplateTraits:
        return template_traits(self._template, self._control, self._files.eos_token_id)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(read_tokenizer_json(self._files).decode())

    def _render(self, messages: Messages, generation_prompt: bool) -> str:
        turns = [dict(message) for message in messages]
        if self._traits.form.content_parts:
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        try:
            return self._template.render(turns, None, {}, generation_prompt)
        except TemplateFailure as failure:
            roles = ", ".join(str(message["role"]) for message in messages)
            raise self._unusable(f"refuses a conversation of {roles}: {failure}") from None

    def _unusable(self, why: str) -> RecipeError:
        return RecipeError(
            f"tokenizer: the chat template of {self._files.name} {why}. Put another chat_template.jinja beside its tokenizer.json."
        )
