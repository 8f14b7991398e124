"""verl: prompts with a rule-checked reference, as the Parquet columns its RL dataset reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.paths import write_text
from datamix.exporters.readme import readers, readme
from datamix.exporters.staged import StagedFiles
from datamix.exporters.target import SetInfo


@dataclass(frozen=True)
class Verl:
    """``train/00000.parquet``: ``data_source``, ``prompt``, ``ability``, ``reward_model``, ``extra_info``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("prompt",)

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return the names."""
        return StagedFiles(self.info, self.split, index, folder).parquet(batches, _prompts)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = (
            readers("verl 0.9.1", "every prompt, reference and source, in our order"),
            "`VALIDATION.parquet` is one of `validation_SOURCE/*.parquet`. `data.shuffle=False` and one epoch are there for our order. "
            "A prompt longer than `data.max_prompt_length` (512) stops it.",
            "`reward_model.ground_truth` is our reference (empty where a record has none) and `data_source` our source: "
            "`reward.py` is yours, a function `compute_score(data_source, solution_str, ground_truth, extra_info)`.",
        )
        text = readme(f"{self.info.name} for verl", self.command(), self.keeps(), notes)
        return [write_text(folder, "README.md", text)]

    def keeps(self) -> tuple[str, ...]:
        """One prompt a row, in our order while ``data.shuffle`` is off."""
        return ("ratio", "order", "isolation")

    def command(self) -> str:
        """Training without a shuffle."""
        return (
            "python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo "
            'data.train_files="[$(ls train/*.parquet | paste -sd,)]" data.val_files=VALIDATION.parquet '
            "data.shuffle=False trainer.total_epochs=1 reward.custom_reward_function.path=reward.py "
            "actor_rollout_ref.model.path=MODEL"
        )


def _prompts(batch: pa.RecordBatch) -> pa.RecordBatch:
    size = len(batch)
    truth = batch.column("reference").fill_null("")
    files = batch.column("records")
    reward = pa.StructArray.from_arrays(
        [pa.array(["rule"] * size, pa.string()), truth], ["style", "ground_truth"]
    )
    firsts = files.offsets.to_numpy()[:-1]
    numbers = files.values.field("record").to_numpy()[firsts] if size else np.zeros(0, np.int64)
    extra = pa.StructArray.from_arrays([pa.array(numbers), batch.column("stage")], ["index", "stage"])
    return pa.RecordBatch.from_pydict(
        {
            "data_source": batch.column("source"),
            "prompt": batch.column("prompt"),
            "ability": batch.column("source"),
            "reward_model": reward,
            "extra_info": extra,
        }
    )
