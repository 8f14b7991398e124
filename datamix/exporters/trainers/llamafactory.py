"""LLaMA-Factory: a ``tokenized_path`` that skips its preprocessing, text with ``dataset_info.json``, and a config each.

``tokenized/`` holds exactly the columns its collators take (one string column would stop them): ids, mask and labels; packed
rows with the mask counting documents (``neat_packing``), padded to one length, a multiple of 8; pairs and labelled
completions with the empty image columns it demands. ``text/`` holds the same records for those who want its templates:
turns as ``sharegpt`` (its ``openai`` form adds a system text of its own), one dataset a file, named in our order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import orjson
import pyarrow as pa

from datamix.core.arrays import IGNORE_INDEX, Ragged, list_column, offsets_from_lengths, ragged
from datamix.core.records import Kind
from datamix.exporters.chat_text import conversation, plain_text, records_of, sharegpt, sole_text, tools_of
from datamix.exporters.formats.arrow import ArrowFolder, chunk_rows, write_stream
from datamix.exporters.paths import make_room, split_folder, write_json, write_text
from datamix.exporters.readme import readme, yaml
from datamix.exporters.staged import Convert, by_stage
from datamix.exporters.target import RecordSource, SetInfo
from datamix.exporters.trainer_columns import completion, pairs, select

_ALIGN = 8  # its collator pads to multiples of this, and leaves positions behind
_IMAGES = ("images", "videos", "audios")


@dataclass(frozen=True)
class LlamaFactory:
    """``tokenized/``, ``text/train/00000.jsonl``, ``dataset_info.json``, ``sft.yaml`` and its like, ``README.md``."""

    info: SetInfo
    split: str
    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard as tokens and as text, a file a stage; return the names."""
        convert = self._convert()
        empty = convert(pa.RecordBatch.from_pylist([], schema=self.info.schema)).schema
        names = []
        for suffix, run in by_stage(batches, self.info, self.split):
            split = split_folder(self.split)
            pair = [
                f"tokenized/{split}/data-{index:05d}{suffix}.arrow",
                f"text/{split}/{index:05d}{suffix}.jsonl",
            ]
            with make_room(folder, pair[1]).open("wb") as text:
                rows = map(convert, self._beside(run, text))
                write_stream(make_room(folder, pair[0]), rows, empty, chunk_rows(self.info))
            names += pair
        return names

    def _beside(self, rows: Iterable[pa.RecordBatch], text: BinaryIO) -> Iterator[pa.RecordBatch]:
        """The rows, their records written as text while they pass."""
        for batch in rows:
            text.writelines(
                orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in self._lines(batch)
            )
            yield batch

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the dataset's state, ``dataset_info.json``, the configs and the README."""
        tokens = ArrowFolder(self.info, self.split, below="tokenized/")
        names = tokens.finish(shards, folder)
        texts = sorted(p.relative_to(folder).as_posix() for p in folder.glob("text/*/*.jsonl"))
        entries = {self._dataset(name): {"file_name": name, **self._columns()} for name in texts}
        names.append(write_json(folder, "dataset_info.json", entries))
        trained = [self._dataset(name) for name in texts if name.startswith("text/train/")]
        for stage in self._stages():
            settings = self._config(stage, trained) | {"template": "empty", "tokenized_path": "tokenized"}
            names.append(write_text(folder, f"{stage}.yaml", yaml(settings)))
            text_stage = "pt" if self.info.kind == "pretrain" else stage
            names.append(
                write_text(folder, f"{text_stage}_text.yaml", yaml(self._config(text_stage, trained)))
            )
        return [*names, write_text(folder, "README.md", self._readme())]

    def keeps(self) -> tuple[str, ...]:
        """``disable_shuffling`` keeps the order, ``neat_packing`` keeps documents apart."""
        return ("ratio", "order", "isolation")

    def command(self) -> str:
        """The stage of this kind, from tokens."""
        return "\n".join(
            f"llamafactory-cli train {stage}.yaml model_name_or_path=MODEL" for stage in self._stages()
        )

    def _from_text(self) -> Iterator[str]:
        for stage in ("pt",) if self.info.kind == "pretrain" else self._stages():
            yield f"llamafactory-cli train {stage}_text.yaml model_name_or_path=MODEL template=TEMPLATE"

    def _stages(self) -> tuple[str, ...]:
        if self.info.kind == "preference":
            return ("dpo", "rm") if self.info.paired else ("kto",)
        return ("pt",) if self.info.kind == "pretrain" and not self.info.packed else ("sft",)

    def _convert(self) -> Convert:
        if self.info.kind == "preference":
            return _pairs if self.info.paired else _labelled
        if self.info.packed:
            width = -(-(self.info.max_length or 1) // _ALIGN) * _ALIGN
            return lambda batch: _numbered(batch, width, self.info.filler_id)
        # its pretraining collator makes labels itself, and cannot pad others
        return select("input_ids", "attention_mask", *(["labels"] if self.info.kind == "sft" else []))

    def _lines(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        if self.info.kind == "preference":
            yield from _pair_lines(batch) if self.info.paired else _labelled_lines(batch)
            return
        for record in records_of(batch, self.records):
            if self.info.kind == "pretrain":
                yield {"text": plain_text(record)}
                continue
            tools = tools_of(record)
            yield {
                "conversations": sharegpt(conversation(record)),
                "tools": orjson.dumps(tools).decode() if tools else "",
            }

    def _dataset(self, file: str) -> str:
        """``text/train/00000.jsonl`` -> ``NAME_train_00000``."""
        return "_".join((self.info.name, *file.removesuffix(".jsonl").split("/")[1:]))

    def _columns(self) -> dict[str, Any]:
        """What ``dataset_info.json`` says of each file; columns that are not named would be lost."""
        if self.info.kind == "pretrain":
            return {"columns": {"prompt": "text"}}
        columns = {"messages": "conversations"}
        if self.info.kind == "sft":
            return {"formatting": "sharegpt", "columns": columns | {"tools": "tools"}}
        if self.info.paired:
            columns |= {"chosen": "chosen", "rejected": "rejected"}
            return {"formatting": "sharegpt", "ranking": True, "columns": columns}
        return {"formatting": "sharegpt", "columns": columns | {"kto_tag": "label"}}

    def _config(self, stage: str, texts: list[str]) -> dict[str, Any]:
        """Training from text; it asks for ``dataset`` even where ``tokenized_path`` makes it read none."""
        settings: dict[str, Any] = {
            "stage": stage,
            "do_train": True,
            "finetuning_type": "full",
            "dataset_dir": ".",
            "dataset": ",".join(texts),
            "cutoff_len": self.info.max_length,
            "num_train_epochs": 1,
            "disable_shuffling": True,
            "output_dir": "output",
        }
        if self.info.packed:
            settings |= {"packing": True, "neat_packing": stage == "sft"}
        return settings

    def _readme(self) -> str:
        notes = [
            "`*.yaml` trains from `tokenized/`, token for token what the manifest counts. `*_text.yaml` trains from `text/` "
            "with one of LLaMA-Factory's own templates: it then tokenizes, masks and cuts by its own "
            "rules, and the shares hold in records only.",
            "`disable_shuffling: true` and one epoch keep our order. Splits `validation_SOURCE` are found by it in `tokenized/`.",
        ]
        if self.info.kind == "pretrain" and self.info.packed:
            notes.append("Packed documents are trained as stage `sft`: only there does it keep them apart.")
        if self.info.kind == "pretrain" and not self.info.packed:
            notes.append(
                "Its pretraining masks padding tokens: use a tokenizer whose pad token is not its end of text."
            )
        if len(self.info.stages) > 1:
            notes.append("Each stage is a dataset of its own: `tokenized_path: tokenized/stages/NAME`.")
        commands = "\n".join((self.command(), *self._from_text()))
        return readme(f"{self.info.name} for LLaMA-Factory", commands, self.keeps(), notes)


def _numbered(batch: pa.RecordBatch, width: int, filler_id: int) -> pa.RecordBatch:
    """Packed rows padded to ``width``: the mask counts documents from 1 (0: padding), positions restart at each."""
    ids, sizes = ragged(batch, "input_ids"), ragged(batch, "seq_lengths")
    inside = np.arange(width) < ids.lengths[:, None]
    firsts = np.repeat(sizes.offsets[:-1] - sizes.offsets[0], sizes.lengths)
    numbers = np.repeat(np.arange(len(sizes.flat)) - firsts + 1, sizes.flat.astype(np.int64))
    lengths = np.full(len(batch), width, np.int64)

    def padded(values: Any, fill: int) -> pa.Array:
        out = np.full(inside.shape, fill, np.int32)
        out[inside] = values
        return list_column(out.reshape(-1), lengths)

    return pa.RecordBatch.from_pydict(
        {
            "input_ids": padded(ids.flat, filler_id),
            "attention_mask": padded(numbers, 0),
            "position_ids": padded(ragged(batch, "position_ids").flat, 0),
            "labels": padded(ragged(batch, "labels").flat, IGNORE_INDEX),
        }
    )


def _no_images(num_rows: int) -> dict[str, pa.Array]:
    return {name: pa.nulls(num_rows) for name in _IMAGES}


def _pairs(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(pairs(batch) | _no_images(len(batch)))


def _labelled(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Labelled completions; beside each prompt, another row's completion for the KL term."""
    answers = ragged(batch, "completion_ids")
    others = np.roll(np.arange(len(batch)), 1)
    values = [answers[i] for i in others.tolist()]
    flat = np.concatenate(values) if values else np.zeros(0, np.int32)
    other = Ragged(flat, offsets_from_lengths(answers.lengths[others]))
    moved = batch.append_column("other_ids", list_column(other.flat, other.lengths))
    columns = completion(batch, "completion_ids", "") | completion(moved, "other_ids", "kl_")
    return pa.RecordBatch.from_pydict(columns | {"kto_tags": batch.column("label")} | _no_images(len(batch)))


def _pair_lines(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = ("prompt", "chosen", "rejected")
    for prompt, chosen, rejected in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
        yield {
            "conversations": sharegpt(prompt),
            "chosen": {"from": "gpt", "value": sole_text(chosen, "chosen")},
            "rejected": {"from": "gpt", "value": sole_text(rejected, "rejected")},
        }


def _labelled_lines(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    names = ("prompt", "completion", "label")
    for prompt, said, label in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
        yield {"conversations": sharegpt(prompt + said), "label": label}
