"""TRL: Parquet with the columns that let its trainers skip their own preprocessing, and a config a trainer.

SFT: ``input_ids``, ``labels`` and, packed, ``seq_lengths`` with ``padding_free`` (it drops ``position_ids``, and a lone
``completion_mask`` it ignores). Pairs: messages for DPO, which has no entry for tokens, and ids of prompt and completion
together for the reward trainer. Labelled completions for KTO, prompts for GRPO: messages; every further column of a prompt
reaches its reward functions. Prompts whose records carry ``privileged_context`` train by self-distillation (SDFT); those that
carry ``completions`` and ``labels``, the steps of a solution and whether each is right, train a process reward model: they
are written once more as plain text, which its trainer takes, in ``steps/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from datamix.core.machine import files_below
from datamix.core.records import Kind
from datamix.exporters.chat_text import message_column, meta_column, meta_of, with_media
from datamix.exporters.columns import pairs
from datamix.exporters.export_format import TEMPLATE_ROOM, LeftOut
from datamix.exporters.folder import (
    StagedParquet,
    make_room,
    shard_name,
    split_names,
    write_parquet,
    write_yaml,
)

_PROMPT_FIELDS = ("data_source", "verifier", "env", "privileged_context")
_STEPS = pa.schema(
    [("prompt", pa.string()), ("completions", pa.list_(pa.string())), ("labels", pa.list_(pa.bool_()))]
)


@dataclass(frozen=True)
class Trl(StagedParquet):
    """``train/00000.parquet``, ``sft.yaml`` and its like, ``README.md``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference", "prompt")
    RENDERS: ClassVar[bool] = True

    def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """What each trainer takes; of a pair, a margin of 0 is what one without a margin counts as."""
        has_text = self.info.kind in ("preference", "prompt")  # rows of other kinds hold ids alone
        tools = {"tools": batch.column("tools")} if has_text and self.info.tools else {}
        if has_text and self.info.chat_kwargs is not None:  # its trainers hand each row's to the template
            texts = batch.column("chat_template_kwargs").fill_null("{}")
            tools["chat_template_kwargs"] = pa.ExtensionArray.from_storage(pa.json_(), texts)
        if self.info.kind == "prompt":
            columns = {
                "prompt": message_column(batch.column("prompt")),
                "reference": batch.column("reference"),
            }
            columns |= {name: meta_column(batch, name) for name in _PROMPT_FIELDS}
            return pa.RecordBatch.from_pydict(columns | tools)
        if self.info.kind != "preference":
            return batch.select(["input_ids", "labels", *(["seq_lengths"] if self.info.packed else [])])
        sides = ("prompt", "chosen", "rejected") if self.info.paired else ("prompt", "completion")
        text = {name: message_column(batch.column(name)) for name in sides} | tools
        if not self.info.paired:
            return pa.RecordBatch.from_pydict(text | {"label": batch.column("label")})
        ids = pairs(batch)
        both = {"chosen_ids": ids["chosen_input_ids"], "rejected_ids": ids["rejected_input_ids"]}
        return pa.RecordBatch.from_pydict(text | both | {"margin": batch.column("margin").fill_null(0.0)})

    def left_out(self, batch: pa.RecordBatch) -> dict[int, LeftOut]:
        """Records with images, which its text trainers do not read."""
        return with_media(batch, self.info)

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a file a stage; of prompts with judged steps their own file too; return the names."""
        if self.info.kind != "prompt":
            return super().write(batches, index, folder)
        steps: list[pa.RecordBatch] = []

        def watched() -> Iterator[pa.RecordBatch]:
            for batch in batches:
                steps.append(_steps(batch))
                yield batch

        names = super().write(watched(), index, folder)
        if not any(map(len, steps)):
            return names
        name = f"steps/{shard_name(self.split, index, '.parquet')}"
        write_parquet(make_room(folder, name), steps, self.info, _STEPS)
        return [*names, name]

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write a config for each trainer, and the README."""
        files = split_names(folder, "train/*.parquet").get("train", [])
        names = [write_yaml(folder, f"{t}.yaml", self._config(t, files)) for t in self._trainers]
        notes = [
            "The configs set what keeps the mixture: one pass in our order, and no packing by TRL. Leave `max_length` as it "
            "is: TRL's own default cuts at 1,024 tokens.",
            "Validation has one folder a source (`validation_SOURCE`): give TRL a dict of them as `eval_dataset` to see each "
            "source's loss.",
        ]
        if self.info.packed:
            notes.append(
                "Rows are packed: `padding_free` turns `seq_lengths` into positions that restart at each document, which flash "
                "attention, sdpa and eager honour."
            )
        if len(self.info.stages) > 1:
            notes.append(
                "Stages are files `-s0-...`, `-s1-...`: the config lists them in order, as one pass."
            )
        if self.info.tools:
            notes.append(
                "Turns hold calls or reasoning: messages are JSON values (`datasets` 4.7 or newer reads them as they are), and "
                "`tools` holds the definitions of each row, which DPO and KTO hand to the chat template. GRPO takes tools as functions."
            )
        if self.info.kind == "prompt":
            notes.append(
                "GRPO needs a reward function of yours, here `score` in `rewards.py`: it gets a list of completions, and the "
                "columns `reference`, `data_source`, `verifier` and `env` by those names (empty where a record has none)."
            )
            notes += self._further_trainers(folder, files)
        return [*names, self.write_readme(folder, "TRL", notes)]

    def command(self) -> str:
        """The trainers of this kind."""
        rewards = " --reward_funcs rewards.score" if self.info.kind == "prompt" else ""
        return "\n".join(
            f"trl {t} --config {t}.yaml --model_name_or_path MODEL{rewards}" for t in self._trainers
        )

    def _further_trainers(self, folder: Path, files: list[str]) -> list[str]:
        """How the trainers without a command take what the records of prompts carry."""
        notes = []
        contexts = (pq.read_table(folder / name, columns=["privileged_context"])[0] for name in files)
        if any(column.null_count < len(column) for column in contexts):
            notes.append(
                'Self-distillation: `trl.experimental.sdft.SDFTTrainer(..., train_dataset=load_dataset("parquet", '
                'data_files="train/*.parquet", split="train"))` reads `prompt` and `privileged_context`; every row needs one.'
            )
        if files_below(folder, "steps/train/*.parquet"):
            notes.append(
                'Process rewards: `trl.experimental.prm.PRMTrainer(..., train_dataset=load_dataset("parquet", '
                'data_files="steps/train/*.parquet", split="train"))` reads `prompt`, `completions` and `labels`, in our order.'
            )
        return notes

    @property
    def _trainers(self) -> tuple[str, ...]:
        if self.info.kind == "preference":
            return ("dpo", "reward") if self.info.paired else ("kto",)
        return ("grpo",) if self.info.kind == "prompt" else ("sft",)

    def _config(self, trainer: str, files: list[str]) -> dict[str, Any]:
        """Sequential sampling keeps the order, ``padding_free`` with ``seq_lengths`` keeps documents apart."""
        settings: dict[str, Any] = {
            "datasets": [{"path": "parquet", "data_files": {"train": files}}],
            "num_train_epochs": 1,
            "train_sampling_strategy": "sequential",
            "output_dir": "output",
        }
        if trainer == "sft":
            settings |= {"packing": False, "max_length": None if self.info.packed else self.info.max_length}
            settings["padding_free"] = self.info.packed
        elif trainer == "grpo":
            del settings["train_sampling_strategy"]  # it samples by itself
            settings["shuffle_dataset"] = False
        elif trainer == "reward":
            settings["max_length"] = self.info.max_length
        elif self.info.max_length is not None:  # rendered by TRL: what follows the end of a turn counts there
            settings["max_length"] = self.info.max_length + TEMPLATE_ROOM
        return settings


def _steps(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The prompts whose solutions are judged step by step: the question as text, the steps, whether each is right."""
    rows = []
    for turns, text in zip(batch.column("prompt").to_pylist(), batch.column("meta").to_pylist(), strict=True):
        fields = meta_of(text)
        steps, labels = fields.get("completions"), fields.get("labels")
        if isinstance(steps, list) and isinstance(labels, list) and len(steps) == len(labels):
            prompt = "\n\n".join(turn["content"] or "" for turn in turns)
            rows.append(
                {"prompt": prompt, "completions": list(map(str, steps)), "labels": list(map(bool, labels))}
            )
    return pa.RecordBatch.from_pylist(rows, schema=_STEPS)
