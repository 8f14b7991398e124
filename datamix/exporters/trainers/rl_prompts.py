"""Prompts with a rule-checked reference, as verl and OpenRLHF read them: Parquet columns, and JSON Lines of messages.

``data_source`` (else the name of our source), ``verifier`` and ``env`` of a record go where the reward function sees them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamix.core.records import Kind
from datamix.exporters.chat_text import (
    answers,
    message_column,
    meta_column,
    meta_of,
    template_messages,
    with_media,
)
from datamix.exporters.export_format import LeftOut, read_by_hand
from datamix.exporters.folder import StagedLines, StagedParquet


@dataclass(frozen=True)
class Verl(StagedParquet):
    """``train/00000.parquet``: ``data_source``, ``prompt``, ``ability``, ``reward_model``, ``extra_info``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("prompt",)
    RENDERS: ClassVar[bool] = True

    def left_out(self, batch: pa.RecordBatch) -> dict[int, LeftOut]:
        """Prompts with images, which need a processor."""
        return with_media(batch, self.info)

    def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The columns of its RL dataset."""
        size = len(batch)
        truth = batch.column("reference").fill_null("")
        pieces = batch.column("records")
        reward = pa.StructArray.from_arrays(
            [pa.array(["rule"] * size, pa.string()), truth], ["style", "ground_truth"]
        )
        firsts = pieces.offsets.to_numpy()[:-1]
        numbers = pieces.values.field("record").to_numpy()[firsts] if size else np.zeros(0, np.int64)
        extra = {"index": pa.array(numbers), "stage": batch.column("stage")}
        extra |= {name: meta_column(batch, name) for name in ("verifier", "env")}
        extra |= {"tools": batch.column("tools")} if self.info.tools else {}
        origin = pc.coalesce(meta_column(batch, "data_source"), batch.column("source"))
        return pa.RecordBatch.from_pydict(
            {
                "data_source": origin,
                "prompt": message_column(batch.column("prompt")),
                "ability": batch.column("source"),
                "reward_model": reward,
                "extra_info": pa.StructArray.from_arrays([*extra.values()], [*extra]),
            }
        )

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = [
            read_by_hand("verl 0.9.1", "every prompt, reference and source, in our order"),
            "`VALIDATION.parquet` is one of `validation_SOURCE/*.parquet`. `data.shuffle=False` and one epoch are there for our order. "
            "A prompt longer than `data.max_prompt_length` stops it; with `data.filter_overlong_prompts=True` it would be dropped.",
            "`reward_model.ground_truth` is our reference (empty where a record has none), `data_source` the record's own or our source, "
            "and `extra_info` has `verifier` and `env` where records carry them: `reward.py` is yours, a function "
            "`compute_score(data_source, solution_str, ground_truth, extra_info)`.",
        ]
        if self.info.tools:
            notes.append(
                "Turns hold calls: messages are JSON values, which `datasets` 4.7 or newer reads. verl takes tool definitions from its "
                "own configuration; those of each record are in `extra_info.tools`."
            )
        return [self.write_readme(folder, "verl", notes)]

    def command(self) -> str:
        """Training without a shuffle."""
        return (
            "python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo "
            'data.train_files="[$(ls train/*.parquet | paste -sd,)]" data.val_files=VALIDATION.parquet '
            f"data.max_prompt_length={self.info.max_length or 'LONGEST'} data.filter_overlong_prompts=False data.truncation=error "
            "data.shuffle=False trainer.total_epochs=1 reward.custom_reward_function.path=reward.py "
            "actor_rollout_ref.model.path=MODEL"
        )


@dataclass(frozen=True)
class OpenRlhf(StagedLines):
    """``train/00000.jsonl``: ``prompt`` (messages), ``label`` (the reference, null where none), ``datasource``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("prompt",)
    RENDERS: ClassVar[bool] = True
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio", "isolation")  # it shuffles; one prompt a row

    def lines(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any] | LeftOut]:
        """A prompt a line."""
        for talk, row in answers(batch):
            if talk.tools or talk.media:
                yield talk.left_out("tools" if talk.tools else "media")
            else:
                fields = meta_of(row["meta"])
                yield {
                    "prompt": template_messages(talk.turns),
                    "label": row["reference"],
                    "datasource": fields.get("data_source") or row["source"],
                    **{name: fields.get(name) for name in ("verifier", "env")},
                }

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = (
            read_by_hand(
                "OpenRLHF 0.11.2",
                "every prompt, rendered to the tokens that we counted, with its reference and source",
            ),
            "`reward.py` is yours: a function `reward_func(queries, prompts, labels)`; `labels` are our references. `datasource` is the "
            "record's `data_source`, else our source; `verifier` and `env` are beside it, for a data set of your own.",
            "It has no place for tool definitions: prompts with tools are left out.",
            "Its sampler shuffles prompts.",
        )
        return [self.write_readme(folder, "OpenRLHF", notes)]

    def command(self) -> str:
        """Training from references."""
        return (
            "python -m openrlhf.cli.train_ppo_ray --data.prompt_dataset json@train --data.input_key prompt "
            "--data.label_key label --data.apply_chat_template --reward.remote_url reward.py --train.num_episodes 1 "
            "--actor.model_name_or_path MODEL"
        )
