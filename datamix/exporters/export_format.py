"""What every export format knows and does: the set that it writes, its options, what its trainer keeps, its README."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.machine import files_below
from datamix.core.records import OPTIONAL_COLUMNS, Kind, row_schema

UNSEEN = (
    "Our tests have not run this trainer: the files follow its sources, and only what their layout alone assures is listed as "
    "kept. Train two steps before a long run."
)
TEMPLATE_ROOM = (
    16  # tokens that a template may write behind the end of a completion, which the set does not hold
)
CUT_TEXTS = (
    "Each text is one piece of the set: of a document that is cut over rows, the stretch that a row holds, and nothing of what the "
    "set leaves out. The trainer puts its own end token behind every text, cut or whole."
)
_MEANS = {  # what it means that a promise is kept, and that it is not
    "ratio": ("every source keeps its share over one pass", "the shares of the sources change"),
    "order": (
        "rows are trained in our order, so the shares hold at every step",
        "rows may come in another order: the shares hold over one pass, not at every step",
    ),
    "isolation": ("no document sees another", "documents that share a row may see each other"),
}
_PLACEHOLDERS = {  # words in a command that the reader replaces
    "MODEL": "`MODEL` is yours: a folder, or a name on the Hub.",
    "TEMPLATE": "`TEMPLATE` is the name of one of its chat templates, such as `qwen3`.",
    "CHECKOUT": "`CHECKOUT` is your copy of the trainer's repository.",
    "LONGEST": "`LONGEST` is at least the tokens of the longest prompt (`report.html` shows it).",
    "CONFIG": "`CONFIG` is your recipe's config.",
}

REASONS = {  # why a record is left out of a folder
    "untrained_turn": "an answer is not to be trained, and the format cannot say so",
    "turn_order": "the trainer drops conversations whose turns are not question and answer in turn",
    "several_turns": "a completion has several turns, and the format holds one",
    "masked_calls": "a part of a call is not to be trained, and the format cannot say so",
    "media": "the format cannot hold the images, videos or audios of the record",
    "calls": "the format cannot hold the tool calls of a turn",
    "tools": "the format cannot hold tool definitions",
    "cut": "a later piece of a conversation that is cut over rows",
}


class LeftOut(NamedTuple):
    """A record that a format cannot hold as it is trained."""

    file: int
    record: int
    reason: str  # of ``REASONS``


@dataclass(frozen=True)
class Weighing:
    """How rows are weighed so that a trainer that averages its loss over one counts as if over the other."""

    trainer: Literal["token", "example"]
    mean_loss_tokens: float  # of the rows of train/ that train anything


@dataclass(frozen=True)
class SetInfo:
    """The training set that is being written, the same in every task that writes a part of it."""

    name: str
    kind: Kind
    packed: bool  # documents of one row kept apart by positions (best_fit)
    max_length: int | None  # tokens a row
    vocab_size: int
    eos_token_id: int | None
    pad_token_id: int | None
    sources: tuple[str, ...]
    stages: tuple[str, ...]
    tokenizer_folder: str  # name beside the format folders: "tokenizer"
    shares: tuple[tuple[str, float], ...]  # asked, by source
    paired: bool = True  # preference: pairs, or completions with a label
    meta: bool = False
    weighing: Weighing | None = None  # None: no column ``weight``
    tools: bool = False  # preference, prompt: turns have reasoning and calls, rows their tools
    chat_kwargs: str | None = None  # JSON object: chat_template_kwargs of the recipe; None: no record has any
    loss_on: str = "assistant"  # sft
    mask: tuple[str, ...] = ()  # sft: parts of calls that are not trained
    loss_weights: bool = False  # sft: turns have weights other than 0 and 1
    media: bool = False  # records may carry images, videos and audios in ``meta``

    @property
    def schema(self) -> pa.Schema:
        """Columns of the rows, used where a shard holds none."""
        has = (self.meta, self.weighing, self.loss_weights, self.tools, self.chat_kwargs)
        optional = [
            name for name, value in zip(OPTIONAL_COLUMNS, has, strict=True) if value not in (False, None)
        ]
        return row_schema(self.kind, self.packed, self.paired, optional)

    @property
    def empty(self) -> pa.RecordBatch:
        """A batch of no rows."""
        return pa.RecordBatch.from_pylist([], schema=self.schema)

    @property
    def filler_id(self) -> int:
        """Token id of padded places; its label is always -100."""
        return next((i for i in (self.pad_token_id, self.eos_token_id) if i is not None), 0)


class RecordSource(Protocol):
    """The text of the records that rows were made from, for formats that hold text."""

    def fetch_many(self, files: NDArray[np.int64], records: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Records as their rows of ``records.SCHEMAS``, in the order asked: ``{"text"}`` or ``{"messages", ...}``.

        ``files`` and ``records`` ``[num_records]`` are those of the rows' ``records``. Messages are those that fit.
        """
        ...

    def piece_texts(
        self,
        files: NDArray[np.int64],
        records: NDArray[np.int64],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> list[str | None]:
        """The text of pieces of documents, tokens ``start..start + length`` of each; None of a conversation.

        The texts of all pieces of a document, end to end, are the document.
        """
        ...


@dataclass(frozen=True)
class ExportFormat(ABC):
    """One format of one split. Further fields of a subclass are its options, but for ``records``, which text formats read."""

    info: SetInfo
    split: str  # train, or validation/SOURCE

    KINDS: ClassVar[tuple[Kind, ...]]
    LABELLED: ClassVar[bool] = True  # holds labelled completions too, where it holds pairs
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio", "order", "isolation")
    RENDERS: ClassVar[bool] = False  # its trainer renders conversations itself

    @abstractmethod
    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write shard ``index`` of the split below ``folder``; return the names of its files. Runs anywhere, once a shard."""

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write what is there once, after all shards of all splits; return the names."""
        return []

    def keeps(self) -> tuple[str, ...]:
        """Which of ``ratio``, ``order`` and ``isolation`` survive in the trainer that reads it."""
        return self.KEEPS

    def keeps_of(self, files: Iterable[str], file: str = "") -> tuple[str, ...]:
        """``keeps`` of a file (empty: of the command) among those that shards wrote: less where records were left out."""
        is_less = any(name.startswith("left_out/train-") for name in files)
        return tuple(name for name in self.keeps() if not is_less or name not in ("ratio", "order"))

    @abstractmethod
    def command(self) -> str:
        """What trains from the folder, or reads it, run inside the format's folder."""

    def write_readme(self, folder: Path, trainer: str, notes: Sequence[str], command: str = "") -> str:
        """Write ``README.md``: the command (or several, a line each), what survives in the trainer, and notes."""
        names = [path.relative_to(folder).as_posix() for path in files_below(folder, "left_out/*.jsonl")]
        reasons = Counter(
            json.loads(line)["reason"] for n in names for line in (folder / n).read_text().splitlines()
        )
        if reasons:
            counted = "; ".join(f"{count:,}: {REASONS[reason]}" for reason, count in sorted(reasons.items()))
            notes = [
                *notes,
                f"**Left out** of the text here, named in `left_out/` with the reason: {counted}.",
            ]
        if self.info.loss_weights:
            notes = [
                *notes,
                "Turns of the set have weights other than 0 and 1, which this folder cannot hold: here each counts as 1. The column "
                "`loss_weights` of `../train` (and of `arrow`, `jsonl`) has them.",
            ]
        if self.info.chat_kwargs is not None and self.RENDERS:
            given = f": {self.info.chat_kwargs}" if self.info.chat_kwargs != "{}" else " of their records"
            notes = [
                *notes,
                f"The tokens were rendered with `chat_template_kwargs`{given}. Give the trainer's template the same.",
            ]
        command, keeps = command or self.command(), self.keeps_of(names)
        promises = [
            f"- {name}: {'kept' if name in keeps else '**not kept**'} ({means[name not in keeps]})"
            for name, means in _MEANS.items()
        ]
        placeholders = [text for word, text in _PLACEHOLDERS.items() if re.search(rf"\b{word}\b", command)]
        lines = (
            f"# {self.info.name} for {trainer}",
            "",
            "Run one of these in this folder:" if "\n" in command else "Run in this folder:",
            "",
            "```sh",
            command,
            "```",
            "",
            *((" ".join(placeholders), "") if placeholders else ()),
            "What the trainer keeps of the mixture:",
            "",
            *promises,
            "",
            *(f"{note}\n" for note in notes),
            "`../manifest.json` says what every row is made of and holds a checksum of each file here.",
            "",
        )
        (folder / "README.md").write_bytes("\n".join(lines).encode())
        return "README.md"


def read_by_hand(program: str, result: str) -> str:
    """For a trainer whose reader was run on these files by hand, without training."""
    return f"The data reader of {program} gave {result}, equal to ours; training was not run. Train two steps before a long run."
