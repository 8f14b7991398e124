"""MedicalGPT: plain text for pretraining, ShareGPT turns for SFT, a conversation with two answers for reward and DPO.

It reads every file of a folder and has no entry for tokens, so it tokenizes, cuts and shuffles itself. It pairs questions with
answers and drops what is in another order, knows one call a turn and no turn that is not trained. Without a folder of
validation it would take 1 % of the training set for it: the commands name the training folder, which it then only loads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.chat_text import (
    Message,
    Talk,
    alternating,
    answers,
    piece_texts,
    sharegpt,
    talks,
    thought_and_content,
)
from datamix.exporters.export_format import CUT_TEXTS, TEMPLATE_ROOM, UNSEEN, LeftOut, RecordSource
from datamix.exporters.folder import StagedLines

_CHARACTERS_A_TOKEN = 16  # more than any token has: dpo_training.py counts characters where it means tokens


@dataclass(frozen=True)
class MedicalGpt(StagedLines):
    """``train/00000.jsonl``, ``validation_SOURCE/00000.jsonl``."""

    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference")
    LABELLED: ClassVar[bool] = False
    RENDERS: ClassVar[bool] = True
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio",)  # it shuffles, and packs pretraining text across documents

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = [
            UNSEEN,
            "It shuffles and tokenizes what it reads; shares hold over one pass, as far as nothing is cut: give it the "
            f"length that the set was made for ({self.info.max_length}). Without `--validation_file_dir` it takes 1 % of the "
            "training set away; the commands name `train`, and with `--do_eval` one of `validation_SOURCE` belongs there.",
        ]
        if self.info.kind == "pretrain":
            notes.append(CUT_TEXTS)
        else:
            notes.append(
                "It renders with the model's chat template (or `--template_name`), puts the end token behind each answer and joins "
                "results of tools to the questions; calls of tools are written as `--tool_format default` has them."
            )
        if self.info.kind == "preference":
            notes.append(
                "`dpo_training.py` drops pairs of more characters, not tokens, than its two lengths together, which is why they are so "
                "large, and shuffles without a seed; one pass is as many steps as pairs by 16. `orpo_training.py` takes the same files."
            )
        return [self.write_readme(folder, "MedicalGPT", notes)]

    def command(self) -> str:
        """The scripts of this kind."""
        length = self.info.max_length or 2048
        files = "--model_name_or_path MODEL --train_file_dir train --validation_file_dir train"
        one_pass = "--do_train --num_train_epochs 1 --output_dir output"
        tools = " --tool_format default" if self.info.kind == "sft" or self.info.tools else ""
        if self.info.kind == "pretrain":
            return f"python CHECKOUT/training/pretraining.py {files} --block_size {length} --packing True {one_pass}"
        if self.info.kind == "sft":
            inputs = " --train_on_inputs True" if self.info.loss_on == "all" else ""
            return f"python CHECKOUT/training/supervised_finetuning.py {files} --model_max_length {length} {one_pass}{tools}{inputs}"
        characters = _CHARACTERS_A_TOKEN * length
        return (
            f"python CHECKOUT/training/reward_modeling.py {files} --max_source_length {length} --max_target_length {TEMPLATE_ROOM} {one_pass} "
            f"--remove_unused_columns False{tools}\n"
            f"python CHECKOUT/training/dpo_training.py {files} --max_source_length {characters} --max_target_length {TEMPLATE_ROOM} --do_train "
            f'--max_steps "$(( ($(cat train/*.jsonl | wc -l) + 15) / 16 ))" --eval_strategy no --output_dir output{tools}'
        )

    def lines(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any] | LeftOut]:
        """An example a line."""
        if self.info.kind == "pretrain":
            yield from ({"text": text} for text in piece_texts(batch, self.records))
        elif self.info.kind == "preference":
            yield from (_pair(talk, row) for talk, row in answers(batch))
        else:
            for talk in talks(batch, self.records, self.info):
                if isinstance(talk, LeftOut) or talk.has_untrained_answer:
                    yield talk if isinstance(talk, LeftOut) else talk.left_out("untrained_turn")
                else:
                    yield _example(talk, alternating(sharegpt(talk.turns)))


def _pair(talk: Talk, row: dict[str, Any]) -> dict[str, Any] | LeftOut:
    if len(row["chosen"]) != 1 or len(row["rejected"]) != 1:
        return talk.left_out("several_turns")
    example = _example(talk, alternating(sharegpt(talk.turns), answered=False))
    if isinstance(example, LeftOut):
        return example
    return example | {side: _answer(row[side][0]) for side in ("chosen", "rejected")}


def _example(talk: Talk, turns: list[dict[str, str]] | None) -> dict[str, Any] | LeftOut:
    if turns is None or talk.media:
        return talk.left_out("media" if talk.media else "turn_order")
    if not all(turn["value"].startswith("{") for turn in turns if turn["from"] == "function_call"):
        return talk.left_out("calls")  # it reads a call as one object: not several, and no thought before it
    functions = [tool.get("function", tool) for tool in talk.tools]
    tools = [f | {"parameters": {"properties": {}} | (f.get("parameters") or {})} for f in functions]
    return {"conversations": turns} | ({"tools": orjson.dumps(tools).decode()} if tools else {})


def _answer(turn: Message) -> str:
    """An answer of a pair, with its calls as its default tool format writes them."""
    calls = orjson.loads(turn["tool_calls"]) if turn.get("tool_calls") else []
    functions = [(c["function"]["name"], c["function"].get("arguments", {})) for c in calls]
    actions = [f"Action: {name}\nAction Input: {orjson.dumps(given).decode()}\n" for name, given in functions]
    return thought_and_content(turn) + "".join(actions)
