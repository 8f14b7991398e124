"""open-instruct: a dataset as its local cache keeps it, so that it neither mixes nor tokenizes.

SFT: ``input_ids``, ``attention_mask``, ``labels``, a row a document. Pairs: ``chosen_*`` and ``rejected_*``, each with its prompt.
Prompts for GRPO: ``input_ids_prompt``, ``ground_truth`` and the ``dataset`` whose verifier checks it, one of each in a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamix.core.arrays import list_column
from datamix.core.records import Kind
from datamix.exporters.chat_text import meta_column
from datamix.exporters.columns import documents_or_pairs
from datamix.exporters.export_format import UNSEEN, ExportFormat, read_by_hand
from datamix.exporters.formats.row_files import ArrowFolder

_ENVIRONMENT = pa.struct(
    [("env_configs", pa.list_(pa.struct([("env_name", pa.string()), ("task_id", pa.string())])))]
)


@dataclass(frozen=True)
class OpenInstruct(ExportFormat):
    """``train/`` (a ``save_to_disk`` folder): its cache folder is this one, its config hash is ``train``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")
    LABELLED: ClassVar[bool] = False
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio", "isolation")  # it shuffles; a row is one document

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; return the names."""
        convert = _prompts if self.info.kind == "prompt" else documents_or_pairs
        return ArrowFolder(self.info, self.split, convert).write(batches, index, folder)

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the datasets' states and the README."""
        names = ArrowFolder(self.info, self.split).finish(shards, folder)
        seen, more = {
            "preference": (
                "both sides of every pair",
                " Its cache of reference log-probabilities still resolves the names in `--mixer_list`.",
            ),
            "prompt": ("", ""),
        }.get(self.info.kind, ("ids and labels of every document", ""))
        notes = [
            read_by_hand("open-instruct (commit e6c3044, August 2026)", seen) if seen else UNSEEN,
            f"Any words do for the mixer list: with a config hash it loads the cached dataset as it is.{more}",
            "It shuffles, and pads the rows of a batch; with `--packing` it joins them and keeps their borders under flash "
            f"attention. A stage is its own dataset: `--dataset_local_cache_dir stages --{self._script[1]} NAME`.",
        ]
        if self.info.kind == "prompt":
            notes[2:] = [
                "`dataset` names the verifier of a prompt: the record's `verifier`, else its `data_source`, else our source, which must be "
                "one of its verifiers. `env_config` has the environment of a record's `env`; `env` is all of it as JSON.",
                "One pass is `--total_episodes` of prompts by `--num_samples_per_prompt_rollout`.",
                f"It shuffles. A stage is its own dataset: `--dataset_local_cache_dir stages --{self._script[1]} NAME`.",
            ]
        return [*names, self.write_readme(folder, "open-instruct", notes)]

    def command(self) -> str:
        """Training from the cache."""
        script, flag = self._script
        length = f"--max_seq_length {self.info.max_length} --num_train_epochs 1"
        if self.info.kind == "prompt":
            length = f"--max_prompt_token_length {self.info.max_length or 'LONGEST'}"
        return (
            f"python CHECKOUT/open_instruct/{script} --model_name_or_path MODEL --dataset_local_cache_dir . --{flag} train "
            f"--dataset_cache_mode local {length}"
        )

    @property
    def _script(self) -> tuple[str, str]:
        """Its script for this kind, and the flag by which that names a cached dataset."""
        scripts = {"preference": ("dpo.py", "config_hash"), "prompt": ("grpo_fast.py", "dataset_config_hash")}
        return scripts.get(self.info.kind, ("finetune.py", "dataset_config_hash"))


def _prompts(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Its columns of a prompt whose answer is verified."""
    verifiers = pc.coalesce(
        *(meta_column(batch, n) for n in ("verifier", "data_source")), batch.column("source")
    )
    ones = np.ones(len(batch), np.int64)
    texts = [
        "\n".join(f"{t['role']}: {t['content']}" for t in turns)
        for turns in batch.column("prompt").to_pylist()
    ]
    return pa.RecordBatch.from_pydict(
        {
            "input_ids_prompt": batch.column("prompt_ids"),
            "ground_truth": list_column(batch.column("reference").fill_null(""), ones),
            "dataset": list_column(verifiers, ones),
            "prompt": pa.array(texts, pa.string()),
            "env_config": pa.array(map(_environment, meta_column(batch, "env").to_pylist()), _ENVIRONMENT),
            "env": meta_column(batch, "env"),
        }
    )


def _environment(env: str | None) -> dict[str, Any] | None:
    """``"sandbox"`` or ``{"env_name": "sandbox", "task_id": ...}`` as JSON -> the configuration of a row."""
    if env is None:
        return None
    value = json.loads(env) if env.startswith("{") else {"env_name": env}
    names = {name: None if value.get(name) is None else str(value[name]) for name in ("env_name", "task_id")}
    return {"env_configs": [names] if names["env_name"] else []}
