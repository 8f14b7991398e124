"""Prompts with a rule-checked reference, as verl and OpenRLHF read them: Parquet columns, and JSON Lines of messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.chat_text import answers, message_column, template_messages
from datamix.exporters.export_format import LeftOut, read_by_hand
from datamix.exporters.folder import StagedLines, StagedParquet


@dataclass(frozen=True)
class Verl(StagedParquet):
    """``train/00000.parquet``: ``data_source``, ``prompt``, ``ability``, ``reward_model``, ``extra_info``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("prompt",)

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
        extra = pa.StructArray.from_arrays([pa.array(numbers), batch.column("stage")], ["index", "stage"])
        return pa.RecordBatch.from_pydict(
            {
                "data_source": batch.column("source"),
                "prompt": message_column(batch.column("prompt")),
                "ability": batch.column("source"),
                "reward_model": reward,
                "extra_info": extra,
            }
        )

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = (
            read_by_hand("verl 0.9.1", "every prompt, reference and source, in our order"),
            "`VALIDATION.parquet` is one of `validation_SOURCE/*.parquet`. `data.shuffle=False` and one epoch are there for our order. "
            "A prompt longer than `data.max_prompt_length` (512) stops it.",
            "`reward_model.ground_truth` is our reference (empty where a record has none) and `data_source` our source: "
            "`reward.py` is yours, a function `compute_score(data_source, solution_str, ground_truth, extra_info)`.",
        )
        return [self.write_readme(folder, "verl", notes)]

    def command(self) -> str:
        """Training without a shuffle."""
        return (
            "python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo "
            'data.train_files="[$(ls train/*.parquet | paste -sd,)]" data.val_files=VALIDATION.parquet '
            "data.shuffle=False trainer.total_epochs=1 reward.custom_reward_function.path=reward.py "
            "actor_rollout_ref.model.path=MODEL"
        )


@dataclass(frozen=True)
class OpenRlhf(StagedLines):
    """``train/00000.jsonl``: ``prompt`` (messages), ``label`` (the reference, null where none), ``datasource``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("prompt",)
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio", "isolation")  # it shuffles; one prompt a row

    def lines(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any] | LeftOut]:
        """A prompt a line."""
        for talk, row in answers(batch):
            if talk.tools:
                yield talk.left_out("tools")
            else:
                prompt = template_messages(talk.turns)
                yield {"prompt": prompt, "label": row["reference"], "datasource": row["source"]}

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = (
            read_by_hand(
                "OpenRLHF 0.11.2",
                "every prompt, rendered to the tokens that we counted, with its reference and source",
            ),
            "`reward.py` is yours: a function `reward_func(queries, prompts, labels)`; `labels` are our references.",
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
