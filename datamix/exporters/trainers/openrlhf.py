"""OpenRLHF: prompts as messages with their reference as ``label``, one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.paths import write_text
from datamix.exporters.readme import readers, readme
from datamix.exporters.staged import StagedFiles
from datamix.exporters.target import SetInfo


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
            readers(
                "OpenRLHF 0.11.2",
                "every prompt, rendered to the tokens that we counted, with its reference and source",
            ),
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
            "python -m openrlhf.cli.train_ppo_ray --data.prompt_dataset json@train --data.input_key prompt "
            "--data.label_key label --data.apply_chat_template --reward.remote_url reward.py --train.num_episodes 1 "
            "--actor.model_name_or_path MODEL"
        )


def _prompts(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = (batch.column(name).to_pylist() for name in ("prompt", "reference", "source"))
    for prompt, reference, source in zip(*columns, strict=True):
        yield {"prompt": prompt, "label": reference, "datasource": source}
