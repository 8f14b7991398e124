"""OpenRLHF: prompts as messages with their reference as ``label``, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datamix.records import Kind
from datamix.write.names import write_text
from datamix.write.readme import UNSEEN, readme
from datamix.write.sets import SetInfo
from datamix.write.staged import StagedFiles


@dataclass(frozen=True)
class OpenRlhf:
    """``train/00000.jsonl``: ``prompt`` (messages), ``label`` (the reference, null where none), ``datasource``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("prompt",)

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return the names."""
        return StagedFiles(self.info, self.split, index, folder).lines(batches, _prompts)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the README."""
        notes = (
            UNSEEN,
            "`reward.py` is yours: a function `reward_func(queries, prompts, labels)`; `labels` are our references.",
            "Its sampler shuffles prompts.",
        )
        text = readme(f"{self.info.name} for OpenRLHF", self.command(), self.keeps(), notes)
        return [write_text(folder, "README.md", text)]

    def keeps(self) -> tuple[str, ...]:
        """It shuffles; one prompt a row."""
        return ("ratio", "isolation")

    def command(self) -> str:
        """Training from references."""
        return (
            "python -m openrlhf.cli.train_ppo_ray --prompt_data json@train --input_key prompt --label_key label "
            "--apply_chat_template --remote_rm_url reward.py --num_episodes 1 --pretrain MODEL"
        )


def _prompts(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = (batch.column(name).to_pylist() for name in ("prompt", "reference", "source"))
    for prompt, reference, source in zip(*columns, strict=True):
        yield {"prompt": prompt, "label": reference, "datasource": source}
