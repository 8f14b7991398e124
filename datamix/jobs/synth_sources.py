"""What a recipe of ``datamix synth`` asks of a model: its sources as records, and the scripts of its kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from datamix.core.hashing import digest
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.prepare_sources import BuildContext, PreparedSource, SourceWork, prepare_sources
from datamix.pipeline.scan import SourceRequest
from datamix.recipe.synth_recipe import SynthRecipe, SynthTokens
from datamix.synthesis.calls import Draft, Item, Sampling
from datamix.synthesis.host_checks import HostProbe
from datamix.synthesis.magpie import MagpieSetup, Steering, magpie, steer
from datamix.synthesis.questions import questions
from datamix.synthesis.rehearsal import question_and_answer, rehearsal
from datamix.synthesis.rewriting import SourceRecord, rewrite
from datamix.synthesis.sampled_answers import sampled_answers
from datamix.synthesis.self_instruct import ROUND, TaskPool, self_instruct
from datamix.tokenize.user_turns import UserTurns

_KINDS = {
    "sdft": "sft",
    "ssr": "sft",
    "self_instruct": "prompt",
    "qa": "pretrain",
    "answers": "prompt",
    "magpie": "prompt",
}
_PARTS = ("role", "content", "reasoning", "tool_calls", "tool_call_id", "name", "train")
_BLOCK = 64  # items that are sorted by their prefix: a host remembers more prefixes, and a beginning stays like the whole
_FROM_SOURCES = ("sdft", "qa", "answers")  # an item a record of the sources


@dataclass(frozen=True)
class Job:
    """A recipe with everything that its scripts need."""

    recipe: SynthRecipe
    prompts: UserTurns | None
    records: tuple[SourceRecord, ...]

    @property
    def id(self) -> str:
        """What seeds depend on beside the index."""
        return digest("job", self.recipe.synth, self.recipe.seed, self.recipe.endpoint.model)

    @property
    def is_open(self) -> bool:
        """Whether there are always more items."""
        return self.recipe.synth not in _FROM_SOURCES

    @property
    def makes_prompts(self) -> bool:
        """Whether the model writes the questions: then they are compared with each other and with the sources."""
        return self.recipe.synth not in ("sdft", "answers")

    @property
    def probe(self) -> HostProbe:
        """What is known of the prompts before the host is."""
        if self.prompts is None:
            return HostProbe(completes=self.recipe.synth == "ssr")
        system = self.recipe.systems[0].text if self.recipe.systems else ""
        prefix = self.prompts.opening([{"role": "system", "content": system}] if system else [])
        return HostProbe(True, prefix, self.prompts.bos, self.prompts.count(prefix))

    def items(self, first: int, count: int, drafts: Sequence[Draft]) -> list[Item]:
        """Items ``first..first + count``, neighbours of equal prefix together; ``drafts`` are those of the items before."""
        recipe, sampling = self.recipe, self.recipe.sampling
        instruction, answer = _sampling(sampling.instruction), _sampling(sampling.answer)
        numbers = range(first, first + count)
        made: list[Item] = []
        if recipe.synth == "magpie":
            assert self.prompts is not None
            setup = MagpieSetup(self.id, self.prompts, instruction, answer, recipe.turns)
            systems = [Steering(s.text, s.share, s.language) for s in recipe.systems]
            for n in numbers:
                steering = steer(self.id, n, systems)
                made.append(Item(str(n), n, steering.text, 1.0, partial(magpie, setup, str(n), steering)))
        elif recipe.synth == "ssr":
            start = partial(rehearsal, self.id, instruction, answer, self.records)
            made = [Item(str(n), n, "", 1.0, partial(start, str(n))) for n in numbers]
        elif recipe.synth == "self_instruct":
            seeds = [question_and_answer(record)[0] for record in self.records]
            written = [str(d.messages[0]["content"]) for d in drafts if d.messages]
            pool = seeds, written, TaskPool([*seeds, *written])
            made = [
                Item(str(n), n, "", 1.0, partial(self_instruct, self.id, instruction, answer, pool, str(n)))
                for n in numbers
            ]  # fmt: skip
        else:
            places = self._order[first : first + count]
            chosen = places if recipe.size is None else range(first, first + len(places))
            made = [
                self._item(number, self.records[place], instruction, answer)
                for number, place in zip(chosen, places, strict=True)
            ]  # fmt: skip
        blocks = [made[n : n + _BLOCK] for n in range(0, len(made), _BLOCK)]
        return [item for block in blocks for item in sorted(block, key=lambda item: item.prefix)]

    def _item(self, number: int, record: SourceRecord, instruction: Sampling, answer: Sampling) -> Item:
        recipe, text = self.recipe, "\n".join(str(turn.get("content") or "") for turn in record.messages)
        length = float(len(text.encode()) + 200)
        if recipe.synth == "sdft":
            return Item(record.key, number, text[:200], length, partial(rewrite, self.id, answer, record))
        if recipe.synth == "qa":
            start = partial(questions, self.id, instruction, answer, record, recipe.qa.per_document)
            return Item(record.key, number, text[:200], length, start)
        asked = recipe.answers
        start = partial(sampled_answers, self.id, answer, record, asked.n, asked.best, asked.pairs)
        return Item(record.key, number, text[:200], length, start)

    @cached_property
    def _order(self) -> list[int]:
        """In which order the records of the sources are asked: drawn by the seed, so that every beginning is like the whole."""
        keys = [digest("order", self.recipe.seed, record.key) for record in self.records]
        return sorted(range(len(keys)), key=lambda place: (keys[place], place))

    def next_count(self, first: int, needed: int, passed: int) -> int:
        """How many items to ask next, where ``passed`` of ``first`` passed and ``needed`` more must."""
        if self.recipe.synth == "self_instruct":
            return ROUND
        share = max(0.02, passed / first) if first else 1.0
        count = -(-needed * 100 // round(share * 100)) if first else needed
        if not self.is_open:
            count = min(count, len(self.records) - first)
        return max(0, min(count, max(64, first) if first else count))


def _sampling(tokens: SynthTokens) -> Sampling:
    return Sampling(tokens.temperature, tokens.max_tokens, tokens.top_p)


def read_sources(recipe: SynthRecipe, context: BuildContext) -> tuple[PreparedSource, ...]:
    """The sources, read and shaped as a build does it. Raises DataError, RecipeError."""
    works = []
    for name, source in recipe.sources.items():
        columns = tuple(sorted(source.columns.items()))
        request = SourceRequest(name, source.path, recipe.base, source.format, source.encoding, columns)
        works.append(
            SourceWork(request, _KINDS[recipe.synth], source.system, source.keep_meta, max_reject_share=0.05)
        )
    return tuple(prepare_sources(context, works))


def source_records(recipe: SynthRecipe, sources: Sequence[PreparedSource]) -> Iterator[SourceRecord]:
    """Every record of the sources, each with an id by its place and a key by its content."""
    for source in sources:
        records = list(_records_of(source))
        limit = recipe.sources[source.name].max_records
        if limit is not None and limit < len(records):
            ranked = sorted(records, key=lambda record: digest("sample", recipe.seed, record.key))
            chosen = {record.id for record in ranked[:limit]}
            records = [record for record in records if record.id in chosen]
        yield from records


def _records_of(source: PreparedSource) -> Iterator[SourceRecord]:
    for part in source.shards.parts:
        for batch in read_batches(str(part.records)):
            files, ordinals = part.identify(batch)
            for row, file, ordinal in zip(batch.to_pylist(), files.tolist(), ordinals.tolist(), strict=True):
                turns = row.get("messages") or [{"role": "user", "content": row.get("text") or ""}]
                yield SourceRecord(
                    id=f"{source.name}:{file}:{ordinal}",
                    key=row["key"].hex(),
                    messages=tuple(_turn(turn) for turn in turns),
                    reference=row.get("reference") or _last_answer(row),
                    tools=tuple(json.loads(row["tools"])) if row.get("tools") else (),
                )


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    kept = {name: turn[name] for name in _PARTS if turn.get(name) is not None}
    if "tool_calls" in kept:
        kept["tool_calls"] = json.loads(kept["tool_calls"])
    return kept


def _last_answer(row: dict[str, Any]) -> str | None:
    answers = [turn.get("content") for turn in row.get("messages") or [] if turn["role"] == "assistant"]
    return answers[-1] if answers else None


def rejected_rows(sources: Sequence[PreparedSource]) -> list[dict[str, Any]]:
    """The records of the sources that could not be read."""
    rows: list[dict[str, Any]] = []
    labels = [file.label for source in sources for file in source.files]  # numbered through
    for source in sources:
        for part in source.shards.parts:
            for batch in read_batches(str(part.folder / "rejects.arrow")):
                files, ordinals = part.identify(batch)
                for row, file, ordinal in zip(
                    batch.to_pylist(), files.tolist(), ordinals.tolist(), strict=True
                ):
                    place = {"source": source.name, "file": labels[file], "record": ordinal}
                    rows.append(
                        {
                            **place,
                            "reason": row["reason"],
                            "detail": row["detail"],
                            "raw": row["raw"].decode("utf-8", "replace"),
                        }
                    )
    return rows
