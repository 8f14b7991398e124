"""Axolotl: the three columns that it takes as tokenized already, a row a document, and its YAML.

It gives packed rows positions of its own, so documents are handed over one by one and packed again by it, in
order and with their borders. It keeps them apart where its YAML names an attention; its default does not. Pairs are
messages, rendered by it through the tokenizer's template: it takes the last turn of an answer alone and no calls, so
pairs that have more are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.chat_text import answers, has_calls, text_turns, with_media
from datamix.exporters.columns import documents
from datamix.exporters.export_format import TEMPLATE_ROOM, LeftOut
from datamix.exporters.folder import StagedParquet, split_names, write_yaml


@dataclass(frozen=True)
class Axolotl(StagedParquet):
    """``train/00000.parquet``, ``config.yaml``, ``README.md``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference")
    LABELLED: ClassVar[bool] = False
    RENDERS: ClassVar[bool] = True

    def convert(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Documents, or ``messages`` (the prompt's) with ``chosen`` and ``rejected`` of one turn each."""
        if self.info.kind != "preference":
            return documents(batch)
        names = {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}
        return pa.RecordBatch.from_pydict(
            {name: text_turns(batch.column(ours)) for name, ours in names.items()}
        )

    def left_out(self, batch: pa.RecordBatch) -> dict[int, LeftOut]:
        """Pairs with calls, which it does not read, or with several turns an answer, of which it takes the last."""
        if self.info.kind != "preference":
            return {}
        reasons = with_media(batch, self.info)
        for i, (talk, row) in enumerate(answers(batch)):
            if len(row["chosen"]) != 1 or len(row["rejected"]) != 1:
                reasons[i] = talk.left_out("several_turns")
            elif talk.tools or has_calls(talk.turns + row["chosen"] + row["rejected"]):
                reasons[i] = talk.left_out("calls")
        return reasons

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the config and the README."""
        pairs = self.info.kind == "preference"
        files = split_names(folder, "*/*.parquet")
        about: dict[str, Any] = {"ds_type": "parquet", "type": "chat_template.default" if pairs else None}
        held_out = [name for split, names in files.items() for name in names if split != "train"]
        tests = [{"path": name} | about | {"split": "train"} for name in held_out]
        if pairs and held_out:  # its DPO looks each entry up by its place among ``datasets``, so there is one
            tests = [{"path": "."} | about | {"data_files": held_out, "split": "train"}]
        settings: dict[str, Any] = {
            "datasets": [{"path": name} | about for name in files.get("train", [])],
            "test_datasets": tests,
            "shuffle_merged_datasets": False,
            "curriculum_sampling": True,
            "num_epochs": 1,
            "micro_batch_size": 1,
            "gradient_accumulation_steps": 8,
            "learning_rate": 1e-5,
            "sequence_len": self.info.max_length,
            "output_dir": "output",
        }
        if pairs:
            settings |= {"rl": "dpo", "chat_template": "tokenizer_default"}
            # a template may end a turn with more than the token that a completion ends with
            settings["sequence_len"] = (
                None if self.info.max_length is None else self.info.max_length + TEMPLATE_ROOM
            )
        elif self.info.packed:
            settings |= {
                "sample_packing": True,
                "sample_packing_sequentially": True,
                "attn_implementation": "sdpa",
            }
        notes = [
            "Its DPO shuffles. Pairs longer than `sequence_len` are dropped, and of a turn it reads the text alone, no calls: pairs with "
            "calls are left out."
            if pairs
            else "The config keeps our order: no shuffle of the merged set, `curriculum_sampling`, one pass. Rows longer than "
            "`sequence_len` would be dropped: leave it at what the set was made for.",
            "Learning rate and batch size are ours to start with and yours to change. Delete its `last_run_prepared` folder when the set changes: it keys what it prepared by names.",
        ]
        if self.info.packed:
            notes.append(
                "It packs the documents again, in order. `attn_implementation` must stay, as `sdpa` or `flash_attention_2`: where none "
                "is named, the documents that it packs see each other."
            )
        config = write_yaml(folder, "config.yaml", {k: v for k, v in settings.items() if v != []})
        return [config, self.write_readme(folder, "Axolotl", notes)]

    def keeps(self) -> tuple[str, ...]:
        """Sequential packing keeps the order, and the attention that the config names keeps packed documents apart."""
        return ("ratio", "isolation") if self.info.kind == "preference" else self.KEEPS

    def command(self) -> str:
        """Training."""
        return "axolotl train config.yaml --base-model MODEL"
