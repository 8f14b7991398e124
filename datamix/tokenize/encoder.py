"""Records to tokens: the entry point of this package.

``load(spec)`` builds one encoder per process; ``encode`` turns a batch of records into a batch of
``records.TOKENS``, row for row, at full length; ``truncate.fit`` makes over-long ones fit. A record that
cannot be emitted has empty lists and a reason: ``template`` (the chat template refuses it, or the trained
span cannot be determined), ``special_text``, ``no_loss`` (nothing to train on), ``empty``, ``overlong``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.errors import RecipeError
from datamix.core.records import Kind, RecordKind
from datamix.tokenize.batch import (
    Assembly,
    Encoded,
    TokenRows,
    pair_batch,
    prompt_batch,
    sft_batch,
    text_batch,
)
from datamix.tokenize.chat_template import ChatTemplate, TemplateFailure
from datamix.tokenize.column_encoder import ColumnEncoder
from datamix.tokenize.conversation import ChatTurn, Conversation, InlineParse, completions, conversations
from datamix.tokenize.document_encoder import DocumentEncoder, FillMiddle, fim_tokens, frame_ids, split_points
from datamix.tokenize.renderer import ChatRenderer, Purpose
from datamix.tokenize.special_tokens import ControlTokens, holds_control, rows_with_candidates
from datamix.tokenize.tokenizer import load_tokenizer
from datamix.tokenize.tokenizer_files import TokenizerFiles, decoder_of

_MIN_REFUSED = 32  # a template that refuses a whole batch of at least so many records is the recipe's mistake
_LOSS_ON: tuple[Purpose, ...] = ("all", "assistant", "last_assistant", "final_answer")
_PURPOSES: dict[str, Purpose] = {**{p: p for p in _LOSS_ON}, "pretrain": "document", "prompt": "prompt"}
_SMALL_ROWS = 4096  # record by record: they take a tenth of a second, and no kernel needs to be loaded
_VERSION = 2  # raised by hand where equal inputs give other tokens


@dataclass(frozen=True)
class EncodeSpec:
    """Everything that decides the tokens of a record."""

    kind: Kind
    tokenizer: TokenizerFiles
    loss_on: str  # all | assistant | last_assistant | final_answer
    special_text: str = "text"  # text | reject | allow
    inline_tags: str = "parse"  # parse | text
    chat_kwargs: str = "{}"  # JSON object: chat_template_kwargs of the recipe or source
    mask: tuple[str, ...] = ()  # sft: tool_args, tool_names: parts of calls that are not trained
    fim_rate: float = 0.0  # pretrain, text records: share that is cut for fill in the middle
    fim_seed: int = 0

    def identity(self) -> dict[str, Any]:
        """What the tokens depend on, by content: no paths, no names."""
        files = self.tokenizer
        return {
            "version": _VERSION,
            "kind": self.kind,
            "tokenizer": files.sha256,
            "eos": files.eos_token_id,
            "named_tokens": [list(pair) for pair in files.named_tokens],
            "chat_template": files.chat_template_sha256,
            "tool_template": files.tool_template,
            "loss_on": self.loss_on if self.kind == "sft" else None,
            "mask": list(self.mask) if self.kind == "sft" else [],
            "special_text": self.special_text,
            "inline_tags": self.inline_tags,
            "chat_kwargs": orjson.loads(self.chat_kwargs or "{}"),
            "fim": [self.fim_rate, self.fim_seed] if self.fim_rate else None,
        }


@lru_cache(maxsize=8)
def load(spec: EncodeSpec) -> Encoder:
    """The encoder of a spec, built once a process.

    Raises RecipeError where the tokenizer lacks what the spec needs.
    """
    return Encoder(spec)


class Encoder:
    """Encodes batches of records by one spec."""

    def __init__(self, spec: EncodeSpec) -> None:
        self.spec = spec
        files = spec.tokenizer
        if files.chat_template is None and spec.kind != "pretrain":
            raise RecipeError(_no_template(files.name, f"a recipe of kind {spec.kind}"))
        loaded = load_tokenizer(replace(files, chat_template=None, chat_template_sha256=None))
        self.control, self.plain = loaded.control, loaded.plain
        middle = _fill_middle(spec, self.control)
        self._num_rows = 0  # encoded so far
        self._documents = DocumentEncoder(self.plain, self.control, spec.special_text == "allow", middle)
        if spec.kind == "pretrain":
            self._before, self._after = frame_ids({"post_processor": loaded.post_processor}, files)

    @property
    def engine(self) -> str:
        """The tokenizer engine in use, for messages only: the ids are the same."""
        return self.plain.engine

    def make_ready(self) -> None:
        """Do ahead what the first record would wait for: transformers, the compiled template, the engine.

        For documents also decode the vocabulary for ``split_points``, while the engine loads.
        """
        self.plain.start_fast()
        if self.spec.kind == "pretrain":
            split_points(self.spec.tokenizer)
        else:
            _ = self._renderer
        self.plain.wait()

    def encode(self, batch: pa.RecordBatch, record_kind: RecordKind) -> tuple[pa.RecordBatch, dict[str, int]]:
        """Tokens of a batch of records, row for row at full length, and counts.

        Counts: ``special_text`` records that hold the text of a control token; ``unwritten`` records from
        which the chat template omits some text, ``unwritten_tools`` those whose tool definitions it omits;
        ``template: MESSAGE`` records that it refuses, by message.
        """
        if record_kind == "text":
            return self._encode_texts(batch)
        counts: Counter[str] = Counter()
        self._num_rows += batch.num_rows
        if record_kind == "sft" and self._num_rows > _SMALL_ROWS and self._columns is not None:
            tokens = self._batch(self._encode_columns(self._columns, batch, counts))
        else:
            rows = self.rows(batch, record_kind)
            if rows.num_special:
                counts["special_text"] = rows.num_special
            tokens = self.encode_rows(rows, counts)
        self._stop_if_template_refuses_all(batch.num_rows, counts)
        return tokens, {name: num for name, num in counts.items() if num}

    def rows(self, batch: pa.RecordBatch, record_kind: RecordKind) -> TokenRows:
        """The conversations of a batch as this spec encodes them, with a reason where one cannot be encoded.

        Raises RecipeError where records of this kind cannot make rows of the recipe's kind.
        """
        kind = self.spec.kind
        if record_kind == "text" or (record_kind == "prompt" and kind != "prompt"):
            raise _wrong_records(record_kind, kind, "answers")
        if record_kind != "preference" and kind == "preference":
            raise _wrong_records(record_kind, kind, "pairs")
        parse = self._inline_parse
        prompts = conversations(batch, parse)
        reasons: list[str | None] = [None] * batch.num_rows
        chosen = rejected = None
        if record_kind == "preference":
            chosen = completions(batch, "chosen", parse)
            rejected = completions(batch, "rejected", parse)
        if record_kind == "preference" and kind in ("sft", "pretrain"):
            labels = batch.column("label").to_pylist()
            reasons = ["no_loss" if label is False else None for label in labels]
            prompts = [
                prompt.with_turns([*prompt.turns, *(answer or [])])
                for prompt, answer in zip(prompts, chosen or [], strict=True)
            ]
        if record_kind == "sft" and kind == "prompt":
            for row, prompt in enumerate(prompts):
                answers = [at for at, turn in enumerate(prompt.turns) if turn.role == "assistant"]
                prompts[row] = prompt.with_turns(prompt.turns[: answers[-1]] if answers else prompt.turns)
        for row, prompt in enumerate(prompts):
            if not prompt.has_text():
                reasons[row] = "empty"
        if kind != "preference":
            chosen = rejected = None
        return self._check_special_text(TokenRows(prompts, chosen, rejected, reasons), batch)

    def encode_rows(self, rows: TokenRows, counts: Counter[str]) -> pa.RecordBatch:
        """Tokens of conversations, row for row; failures of the template are counted by message."""
        if self.spec.kind == "preference":
            return self._encode_pairs(rows, counts)
        return self._batch(self._encode_each(rows, counts))

    def _encode_each(self, rows: TokenRows, counts: Counter[str]) -> Encoded:
        """Record by record."""
        purpose = self._purpose
        assembly = self._assembly()
        reasons = list(rows.reasons)
        for row, conversation in enumerate(rows.prompts):
            if reasons[row] is None:
                reasons[row] = self._add(assembly, conversation, purpose, counts)
            else:
                assembly.add_empty()
        flat, trained, weights = assembly.encode()
        return Encoded(flat, trained, reasons, weights)

    def _encode_columns(self, columns: ColumnEncoder, batch: pa.RecordBatch, counts: Counter[str]) -> Encoded:
        """The plain records in columns, the others record by record."""
        number = columns.layouts(batch, rows_with_candidates(batch, self.control))
        others = batch.filter(pa.array(number < 0))
        rows = self.rows(others, "sft")
        if rows.num_special:
            counts["special_text"] = rows.num_special
        each = self._encode_each(rows, counts)
        if len(rows.reasons) == batch.num_rows:
            return each
        return columns.encode(batch.column("messages"), number, each, counts)

    def _batch(self, encoded: Encoded) -> pa.RecordBatch:
        flat, trained, reasons, weights = encoded
        if self.spec.kind == "sft":
            return sft_batch(flat, trained, reasons, weights)
        return prompt_batch(flat, reasons) if self.spec.kind == "prompt" else text_batch(flat, reasons)

    @property
    def _purpose(self) -> Purpose:
        return _PURPOSES[self.spec.loss_on if self.spec.kind == "sft" else self.spec.kind]

    @cached_property
    def _columns(self) -> ColumnEncoder | None:
        """For conversations that are rendered whole, where text is never control."""
        if self.spec.kind not in ("sft", "pretrain") or self.spec.special_text == "allow":
            return None
        return ColumnEncoder(self.plain, self._renderer_of, self._purpose, self._inline_parse)

    def document_starts(self, text: str) -> NDArray[np.int64] | None:
        """Where each token of a document begins, in characters, and where the last ends: ``[num_tokens + 1]``.

        None where the document is cut for fill in the middle.
        """
        return self._documents.starts(text, (self._before, self._after))

    def decode(self, ids: list[int]) -> str:
        """The text of ids, control tokens spelled out."""
        return str(self._decoder.decode(ids, skip_special_tokens=False))

    def _encode_texts(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, dict[str, int]]:
        if self.spec.kind != "pretrain":
            raise _wrong_records("text", self.spec.kind, "turns")
        texts = batch.column("text")
        has_control = self.control.are_in(texts).to_numpy(zero_copy_only=False)
        counts = {"special_text": int(has_control.sum())} if has_control.any() else {}
        strings = texts.to_pylist()
        reasons: list[str | None] = [None if text and not text.isspace() else "empty" for text in strings]
        if self.spec.special_text == "reject":
            reasons = ["special_text" if has else r for has, r in zip(has_control, reasons, strict=True)]
        strings = ["" if reason else text for text, reason in zip(strings, reasons, strict=True)]
        flat = self._documents.encode(strings, has_control, (self._before, self._after))
        return text_batch(flat, reasons), counts

    def _encode_pairs(self, rows: TokenRows, counts: Counter[str]) -> pa.RecordBatch:
        """Three rows a record: prompt, chosen, rejected."""
        assembly = self._assembly()
        reasons = list(rows.reasons)
        for row, (prompt, chosen, rejected) in enumerate(rows.pairs()):
            sides = [prompt.with_turns(turns) for turns in (chosen, rejected) if turns is not None]
            if reasons[row] is None and not all(side.has_text() for side in sides):
                reasons[row] = "empty"
            if reasons[row] is None:
                reasons[row] = self._add_pair(assembly, prompt, chosen, rejected, counts)
            else:
                assembly.add_empty(3)
        flat, _, _ = assembly.encode()
        return pair_batch(flat, reasons, [rejected is not None for _, _, rejected in rows.pairs()])

    def _add(
        self, assembly: Assembly, conversation: Conversation, purpose: Purpose, counts: Counter[str]
    ) -> str | None:
        """Add a row, empty where the template fails; returns the reason, if any."""
        try:
            rendered = self._renderer_of(conversation).render(conversation, purpose)
        except TemplateFailure as failure:
            counts[f"template: {failure}"] += 1
            assembly.add_empty()
            return "template"
        counts.update(rendered.unwritten)
        assembly.add(rendered.layout, rendered.texts)
        return None

    def _add_pair(
        self,
        assembly: Assembly,
        prompt: Conversation,
        chosen: list[ChatTurn] | None,
        rejected: list[ChatTurn] | None,
        counts: Counter[str],
    ) -> str | None:
        """Add the three rows of a pair, empty where the template fails; returns the reason, if any."""
        renderer = self._renderer_of(prompt)
        try:
            rendered = [renderer.render(prompt, "prompt")]
            for turns in (chosen, rejected):
                if turns is not None:
                    whole = prompt.with_turns([*prompt.turns, *turns])
                    rendered.append(renderer.render(whole, "completion", len(prompt.turns)))
        except TemplateFailure as failure:
            counts[f"template: {failure}"] += 1
            assembly.add_empty(3)
            return "template"
        counts.update(frozenset().union(*(chat.unwritten for chat in rendered)))
        assembly.add(rendered[0].layout, rendered[0].texts)
        for chat in rendered[1:]:
            assembly.add(renderer.trained_part(chat.layout), chat.texts)
        assembly.add_empty(3 - len(rendered))
        return None

    def _check_special_text(self, rows: TokenRows, batch: pa.RecordBatch) -> TokenRows:
        """Count the rows that hold text of control tokens, and refuse them where the recipe asks for it."""
        num_special = 0
        reasons = list(rows.reasons)
        for row in rows_with_candidates(batch, self.control):
            if holds_control(rows.all_turns(row), self.control):
                num_special += 1
                if self.spec.special_text == "reject":
                    reasons[row] = "special_text"
        return TokenRows(rows.prompts, rows.chosen, rows.rejected, reasons, num_special)

    def _stop_if_template_refuses_all(self, num_rows: int, counts: Counter[str]) -> None:
        failed = {name: number for name, number in counts.items() if name.startswith("template: ")}
        if num_rows < _MIN_REFUSED or sum(failed.values()) < num_rows:
            return
        message = max(failed, key=lambda name: (failed[name], name)).removeprefix("template: ")
        raise RecipeError(
            f"encode: the chat template of {self.spec.tokenizer.name} refuses every one of {num_rows} "
            f"records of a batch; its message: {message}. Name another template with `chat_template`, or fix "
            "what it objects to."
        )

    def _assembly(self) -> Assembly:
        return Assembly(self.plain, self.control if self.spec.special_text == "allow" else None)

    def _renderer_of(self, conversation: Conversation) -> ChatRenderer:
        """The renderer of the template for a conversation: with tools the one named ``tool_use``."""
        has_own = self.spec.tokenizer.tool_template is not None and conversation.tools
        return self._tool_renderer if has_own else self._renderer

    @cached_property
    def _renderer(self) -> ChatRenderer:
        return self._make_renderer(self.spec.tokenizer.chat_template)

    @cached_property
    def _tool_renderer(self) -> ChatRenderer:
        return self._make_renderer(self.spec.tokenizer.tool_template)

    def _make_renderer(self, template: str | None) -> ChatRenderer:
        files = self.spec.tokenizer
        if template is None:
            raise RecipeError(_no_template(files.name, "a source of conversations"))
        kwargs = orjson.loads(self.spec.chat_kwargs or "{}")
        name = files.template_name or f"the template of {files.name}"
        chat = ChatTemplate(template, files.named_tokens, kwargs, name)
        mask = self.spec.mask if self.spec.kind == "sft" else ()
        return ChatRenderer(chat, self.control, files.eos_token_id, self.plain.restarts_after_control, mask)

    @cached_property
    def _inline_parse(self) -> InlineParse:
        """Inline tags are parsed where the recipe asks for it and the template can write the fields."""
        traits = self._renderer.traits
        is_asked = self.spec.inline_tags == "parse"
        return InlineParse(
            is_asked and traits.writes_reasoning,
            is_asked and traits.writes_calls,
            is_asked and traits.splits_thoughts,
        )

    @cached_property
    def _decoder(self) -> Any:
        return decoder_of(self.spec.tokenizer)


def _no_template(name: str, need: str) -> str:
    return (
        f"tokenizer: {name} has no chat template, and {need} needs one. Name a Jinja file with "
        "`chat_template`, or use a tokenizer that has one (chat_template.jinja beside tokenizer.json)."
    )


def _wrong_records(record_kind: RecordKind, kind: Kind, missing: str) -> RecipeError:
    change = "change the recipe's kind to pretrain" if missing == "turns" else "change the recipe's kind"
    return RecipeError(
        f"encode: a source of {record_kind} records cannot make {kind} rows: it holds no {missing}. "
        f"Remove the source, or {change}."
    )


def _fill_middle(spec: EncodeSpec, control: ControlTokens) -> FillMiddle | None:
    if not spec.fim_rate:
        return None
    tokens = fim_tokens(control)
    if tokens is None:
        raise RecipeError(
            f"encode: the recipe asks for fill in the middle, but the tokenizer {spec.tokenizer.name} has no "
            "tokens for it (<|fim_prefix|>, <|fim_suffix|>, <|fim_middle|> or the like). Remove `fim`, or "
            "use a code tokenizer."
        )
    return FillMiddle(tokens, spec.fim_rate, spec.fim_seed)
