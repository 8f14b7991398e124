"""LLaMA-Factory: a ``tokenized_path`` that skips its preprocessing, text with ``dataset_info.json``, and a config each.

``tokenized/`` holds exactly the columns its collators take (one string column would stop them): ids, mask and labels; packed
rows with the mask counting documents (``neat_packing``), padded to one length, a multiple of 8; pairs and labelled
completions with the empty image columns it demands. ``text/`` holds the same records for those who want its templates:
turns as ``sharegpt`` (its ``openai`` form adds a system text of its own), one dataset a file, named in our order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import orjson
import pyarrow as pa

from datamix.core.arrays import IGNORE_INDEX, list_column, ragged
from datamix.core.machine import files_below
from datamix.core.records import Kind
from datamix.exporters.chat_text import Talk, alternating, answers, piece_texts, sharegpt, talks
from datamix.exporters.columns import completion, pairs, select
from datamix.exporters.export_format import CUT_TEXTS, ExportFormat, LeftOut, RecordSource, SetInfo
from datamix.exporters.folder import (
    Convert,
    by_stage,
    held,
    make_room,
    shard_name,
    write_json,
    write_left_out,
    write_yaml,
)
from datamix.exporters.formats.row_files import ArrowFolder

_MEDIA = ("images", "videos", "audios")
_ALIGN = 8  # its collator pads to multiples of this, and leaves positions behind

# A model of the common size (Qwen2.5-7B) and LoRA of rank 16 on all its linear layers, for the arithmetic in comments.
_PARAMETERS, _LAYERS, _HIDDEN, _LORA_PARAMETERS = 7.6e9, 28, 3584, 40e6
_FITS = 22.5  # GB of 24: the rest is the framework's


@dataclass(frozen=True)
class LlamaFactory(ExportFormat):
    """``tokenized/``, ``text/train/00000.jsonl``, ``dataset_info.json``, ``sft.yaml`` and its like, ``README.md``."""

    records: RecordSource | None = None

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft", "preference")
    RENDERS: ClassVar[bool] = True

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard as tokens and as text, a file a stage; return the names."""
        tokens = ArrowFolder(self.info, self.split, self._convert(), below="tokenized/")
        names: list[str] = []
        left: list[LeftOut] = []
        for suffix, run in by_stage(batches, self.info, self.split):
            names += [
                tokens.shard_name(index, suffix),
                f"text/{shard_name(self.split, index, f'{suffix}.jsonl')}",
            ]
            with make_room(folder, names[-1]).open("wb") as text:
                rows = map(partial(self._write_text, text, left), run)
                tokens.write_stream(make_room(folder, names[-2]), rows)
        return names + write_left_out(folder, self.split, index, left)

    def _write_text(self, text: BinaryIO, left: list[LeftOut], batch: pa.RecordBatch) -> pa.RecordBatch:
        """Write the records of a batch as text while it passes."""
        for line in held(self._lines(batch), left):
            text.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        return batch

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the dataset's state, ``dataset_info.json``, the configs and the README."""
        tokens = ArrowFolder(self.info, self.split, below="tokenized/")
        names = tokens.finish(shards, folder)
        texts = [p.relative_to(folder).as_posix() for p in files_below(folder, "text/*/*.jsonl")]
        # text/train/00000.jsonl -> NAME_train_00000
        datasets = {n: "_".join((self.info.name, *n.removesuffix(".jsonl").split("/")[1:])) for n in texts}
        entries = {datasets[name]: {"file_name": name, **self._columns()} for name in texts}
        names.append(write_json(folder, "dataset_info.json", entries))
        trained = [datasets[name] for name in texts if name.startswith("text/train/")]
        tests = [datasets[name] for name in texts if not name.startswith("text/train/")]
        validated = (
            {"eval_strategy": "steps", "eval_steps": 100, "per_device_eval_batch_size": 1} if tests else {}
        )
        from_text = []
        for stage in self._stages:
            tokens_only = {"template": "empty", "tokenized_path": "tokenized", **validated}
            names.append(
                write_yaml(
                    folder, f"{stage}.yaml", self._config(stage, trained) | tokens_only, choices(self.info)
                )
            )
            text_stage = "pt" if self.info.kind == "pretrain" else stage
            settings = self._config(text_stage, trained) | validated
            if tests:
                settings |= {"eval_dataset": ",".join(tests), "eval_on_each_dataset": True}
            names.append(write_yaml(folder, f"{text_stage}_text.yaml", settings, choices(self.info)))
            from_text.append(
                f"llamafactory-cli train {text_stage}_text.yaml model_name_or_path=MODEL template=TEMPLATE"
            )
        command = "\n".join((self.command(), *from_text))
        return [*names, self.write_readme(folder, "LLaMA-Factory", self._notes(), command)]

    def keeps_of(self, files: Iterable[str], file: str = "") -> tuple[str, ...]:
        """Records are left out of the text alone; the command trains from tokens."""
        return super().keeps_of(files if file.startswith("text/") else ())

    def command(self) -> str:
        """The stage of this kind, from tokens."""
        return "\n".join(f"llamafactory-cli train {s}.yaml model_name_or_path=MODEL" for s in self._stages)

    @property
    def _stages(self) -> tuple[str, ...]:
        if self.info.kind == "preference":
            return ("dpo", "rm") if self.info.paired else ("kto",)
        return ("pt",) if self.info.kind == "pretrain" and not self.info.packed else ("sft",)

    def _convert(self) -> Convert:
        if self.info.kind == "preference":
            return self._answers
        if self.info.packed:
            width = -(-(self.info.max_length or 1) // _ALIGN) * _ALIGN
            return lambda batch: _numbered(batch, width, self.info.filler_id)
        # its pretraining collator makes labels itself, and cannot pad others
        return select("input_ids", "attention_mask", *(["labels"] if self.info.kind == "sft" else []))

    def _lines(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any] | LeftOut]:
        if self.info.kind == "pretrain":
            yield from ({"text": text} for text in piece_texts(batch, self.records))
        elif self.info.kind == "preference":
            yield from (self._answer(talk, row) for talk, row in answers(batch))
        else:
            for talk in talks(batch, self.records, self.info):
                if isinstance(talk, LeftOut):
                    yield talk
                elif (
                    talk.has_untrained_answer and self.info.loss_on != "last_assistant"
                ):  # which its config says
                    yield talk.left_out("untrained_turn")
                else:
                    turns = alternating(sharegpt(talk.turns))
                    yield self._example(talk, turns) if turns else talk.left_out("turn_order")

    def _answer(self, talk: Talk, row: dict[str, Any]) -> dict[str, Any] | LeftOut:
        """A pair, or a labelled completion."""
        sides = ("chosen", "rejected") if self.info.paired else ("completion",)
        if any(len(row[side]) != 1 for side in sides):
            return talk.left_out("several_turns")
        turns = alternating(sharegpt(talk.turns), answered=False)
        if turns is None:
            return talk.left_out("turn_order")
        completions = {side: sharegpt(row[side])[0] for side in sides}
        if self.info.paired:
            return self._example(talk, turns) | completions
        return self._example(talk, [*turns, completions["completion"]]) | {"label": row["label"]}

    def _example(self, talk: Talk, turns: list[dict[str, str]]) -> dict[str, Any]:
        tools = orjson.dumps(talk.tools).decode() if talk.tools else ""
        example: dict[str, Any] = {"conversations": turns}
        if self.info.kind == "sft" or self.info.tools:
            example["tools"] = tools
        return example | ({n: talk.media.get(n, []) for n in _MEDIA} if self.info.media else {})

    def _answers(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Pairs, or labelled completions with another row's completion beside each prompt, for the KL term."""
        images = {name: pa.nulls(len(batch)) for name in _MEDIA}
        if self.info.paired:
            return pa.RecordBatch.from_pydict(pairs(batch) | images)
        other = batch.column("completion_ids").take(pa.array(np.roll(np.arange(len(batch)), 1)))
        columns = completion(batch, "completion_ids", "") | completion(
            batch.append_column("other_ids", other), "other_ids", "kl_"
        )
        return pa.RecordBatch.from_pydict(columns | {"kto_tags": batch.column("label")} | images)

    def _columns(self) -> dict[str, Any]:
        """What ``dataset_info.json`` says of each file; columns that are not named would be lost."""
        if self.info.kind == "pretrain":
            return {"columns": {"prompt": "text"}}
        columns = {"messages": "conversations"}
        if self.info.kind == "sft" or self.info.tools:
            columns |= {"tools": "tools"}
        if self.info.media:
            columns |= {name: name for name in _MEDIA}
        if self.info.kind == "sft":
            return {"formatting": "sharegpt", "columns": columns}
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
        key = {"last_assistant": "mask_history", "all": "train_on_prompt"}.get(self.info.loss_on)
        if self.info.kind == "sft" and key is not None:
            settings[key] = True
        return settings

    def _notes(self) -> list[str]:
        notes = [
            "`*.yaml` trains from `tokenized/`, token for token what the manifest counts. `*_text.yaml` trains from `text/` "
            "with one of LLaMA-Factory's own templates: it then tokenizes, masks and cuts by its own "
            "rules, and the shares hold in records only.",
            "`disable_shuffling: true` and one epoch keep our order. Splits `validation_SOURCE` give one loss each: `eval_strategy` "
            "is set where there are some.",
        ]
        if self.info.media:
            notes.append(
                "Records carry images, videos or audios: `text/` names them as the data does (`media_dir` is where they are); `tokenized/` "
                "holds the text alone."
            )
        if self.info.kind == "pretrain":
            notes.append(CUT_TEXTS)
        if self.info.kind == "pretrain" and self.info.packed:
            notes.append("Packed documents are trained as stage `sft`: only there does it keep them apart.")
        if self.info.kind == "pretrain" and not self.info.packed:
            notes.append(
                "Its pretraining masks padding tokens: use a tokenizer whose pad token is not its end of text."
            )
        if len(self.info.stages) > 1:
            notes.append("Each stage is a dataset of its own: `tokenized_path: tokenized/stages/NAME`.")
        return notes


def choices(info: SetInfo) -> list[str]:
    """Precision, batch size and LoRA as comments, with the memory that they need on one GPU of 24 GB, by arithmetic."""
    length = info.max_length or 2048
    weights, lora = _PARAMETERS * 2 / 1e9, _LORA_PARAMETERS * 16 / 1e9
    kept, logits = length * _HIDDEN * _LAYERS * 2 / 1e9, length * info.vocab_size * 6 / 1e9
    total = weights + lora + kept + logits
    lines = [
        "To choose from, by removing the number signs in front. For one GPU of 24 GB and a model of 7.6 billion parameters",
        f"({_LAYERS} layers of {_HIDDEN:,}), with rows of {length:,} tokens and a vocabulary of {info.vocab_size:,}:",
        f"  weights in bf16: 7.6e9 x 2 B = {weights:.1f} GB; LoRA of rank 16 with gradients and Adam: 40e6 x 16 B = {lora:.1f} GB;",
        f"  a row's checkpoints: {length:,} x {_HIDDEN:,} x {_LAYERS} x 2 B = {kept:.1f} GB; its logits: {length:,} x {info.vocab_size:,} x 6 B = {logits:.1f} GB;",
        f"  in all {total:.1f} GB"
        + (
            "."
            if total < _FITS
            else f", {total - weights * 0.75:.1f} GB with quantization_bit: 4 (weights x 0.5 B)."
        ),
        "bf16: true",
        "per_device_train_batch_size: 1",
        "gradient_accumulation_steps: 16",
        "finetuning_type: lora    # in place of the line above; all parameters at once need 7.6e9 x 16 B = 122 GB, over several GPUs",
        "lora_rank: 16",
        "lora_target: all",
        "learning_rate: 1.0e-4    # 1.0e-5 where all parameters are trained",
    ]
    return lines if total < _FITS else [*lines, "quantization_bit: 4"]


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
