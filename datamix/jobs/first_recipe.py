"""A first recipe as commented YAML: the sources, and the settings that users change first."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamix.core.records import Kind, RecordKind

_FALLBACK_TOKENIZER = "Qwen/Qwen2.5-0.5B-Instruct"
RECORDS_OF: dict[Kind, RecordKind] = {
    "sft": "sft",
    "pretrain": "text",
    "preference": "preference",
    "prompt": "prompt",
}

# Names that people give to the fields of a question, its answer, and a document, the likeliest first.
_QUESTIONS = (
    "instruction",
    "question",
    "prompt",
    "query",
    "input",
    "user",
    "human",
    "problem",
    "title",
    "ask",
    "q",
    "问题",
    "提问",
    "问",
    "指令",
    "输入",
)
_ANSWERS = (
    "output",
    "answer",
    "response",
    "completion",
    "reply",
    "assistant",
    "gpt",
    "bot",
    "solution",
    "target",
    "a",
    "回答",
    "答案",
    "答",
    "回复",
    "输出",
)
_TEXTS = (
    "text",
    "content",
    "body",
    "document",
    "article",
    "passage",
    "raw_content",
    "markdown",
    "code",
    "story",
    "内容",
    "正文",
    "文本",
)


@dataclass(frozen=True)
class SourcePart:
    """One source to be, or a file that cannot be one."""

    name: str
    paths: tuple[str, ...]
    format: str
    kind: RecordKind | None
    columns: tuple[tuple[str, str], ...]
    num_records: int = 0
    estimated: bool = False
    num_files: int = 1
    example: str = ""
    problem: str = ""  # why it is no source
    container: str = ""
    group: str = ""  # the folder that it shares with others
    text_bytes: float = 0.0  # of its documents or answers, estimated
    max_records: int | None = None
    remote: bool = False  # on the Hub, and not loaded


@dataclass(frozen=True)
class FirstRecipe:
    """One recipe as text, and what it was made from."""

    kind: Kind
    text: str
    sources: tuple[SourcePart, ...]
    unused: tuple[SourcePart, ...] = ()  # by no recipe


def recipe_text(
    parts: list[SourcePart], kind: Kind, paths: Sequence[str], base: str, tokenizer: str | None = None
) -> FirstRecipe:
    """The recipe over the parts without a problem; those of the recipe's kind are active, others are comments."""
    used = [part for part in parts if not part.problem]
    active = [
        part
        for part in used
        if part.kind == RECORDS_OF[kind] or (kind == "prompt" and part.format == "question_answer")
    ] or used
    others = [part for part in used if part not in active]
    comment = ""
    if tokenizer is None:
        tokenizer, comment = _tokenizer(paths, base, kind)
    elif Path(tokenizer).exists():
        tokenizer = _relative(tokenizer, base)
    weights = _weights(active, kind)
    lines = [
        f"# A recipe of kind {kind} over {len(active)} source{'s' * (len(active) != 1)}, written by datamix init.",
        "# Check it, then:  datamix plan THIS_FILE   and   datamix build THIS_FILE",
        f"name: {kind}-set",
        f"kind: {kind}",
        "seed: 42",
        f"tokenizer: {_scalar(tokenizer)}" + (f"   # {comment}" if comment else ""),
        "",
        "sources:",
    ]
    for part in active:
        lines += _source(part, kind, base)
        if weights and part.group:
            lines.append(f"    group: {_scalar(part.group)}")
        elif weights:
            lines.append(f"    weight: {weights[part.name]}")
    if not weights:
        lines.append(
            "    # weight: 1                # relative to the other sources' weights; with no weights, each record once"
        )
    if others:
        lines.append("  # Records of another kind that can be used too:")
        lines += [f"  # {line[2:]}" for part in others for line in _source(part, kind, base)]
    if unused := [part for part in parts if part.problem]:
        lines += ["", "# Not used:"]
    for part in unused:
        more = f" and {len(part.paths) - 1} more" if len(part.paths) > 1 else ""
        lines.append(f"#   {one_line(_relative(part.paths[0], base))}{more}: {one_line(part.problem, 300)}")
    if remote := [part for part in parts if part.remote]:
        lines += ["", "# Sources on the Hub, to be moved up to the others:"]
        lines += [f"# {line}" for part in remote for line in _source(part, kind, base)]
    if weights:
        lines += [
            "",
            "groups:  # a weight a folder: now about its share of what is there: change it to what you want",
        ]
        groups = dict.fromkeys(part.group for part in active if part.group)
        lines += [f"  {_scalar(group)}: {{weight: {weights[group]}}}" for group in groups]
    return FirstRecipe(kind, "\n".join([*lines, "", *_settings(kind)]) + "\n", tuple(active))


def _weights(parts: Sequence[SourcePart], kind: Kind) -> dict[str, str]:
    """A weight a folder, and a source in none, where there are several folders, one of them with several sources."""
    groups = Counter(part.group for part in parts if part.group)
    if len(groups) < 2 or max(groups.values()) < 2:
        return {}
    sizes: Counter[str] = Counter()
    for part in parts:
        size = part.text_bytes if kind in ("sft", "pretrain") else part.num_records  # as mix.unit counts
        sizes[part.group or part.name] += max(1, round(size))
    return {name: f"{max(0.001, size / sizes.total()):.3g}" for name, size in sizes.items()}


def _source(part: SourcePart, kind: Kind, base: str) -> Iterator[str]:
    if part.remote:
        about = "records of the Hub"
    else:
        about = f"{'~' * part.estimated}{part.num_records:,} record{'s' * (part.num_records != 1)}"
    if part.num_files > 1:
        about += f" in {part.num_files:,} files"
    if part.kind == "preference" and kind == "sft":
        about += ", the prompt and better answer of each pair"
    elif part.kind not in (None, RECORDS_OF[kind]):
        about += f", {part.kind} records"
    yield f"  {_scalar(part.name)}:"
    yield f"    # {about}, e.g. {part.example}" if part.example else f"    # {about}"
    paths = [_scalar(_relative(path, base)) for path in part.paths]
    yield f"    path: {paths[0]}" if len(paths) == 1 else f"    path: [{', '.join(paths)}]"
    yield f"    format: {part.format}"
    if part.columns:
        pairs = ", ".join(f"{_scalar(ours)}: {_scalar(theirs)}" for ours, theirs in part.columns)
        yield f"    columns: {{{pairs}}}"
    if part.max_records is not None:
        yield f"    max_records: {part.max_records}"


def _settings(kind: Kind) -> list[str]:
    lines = [
        "# clean:",
        "#   - normalize: {unicode: NFC}",
        "",
        "# dedupe:",
        "#   exact: true",
        "#   near: {threshold: 0.8}       # near-duplicates too",
        "",
        "# validation: {share: 0.01}      # of each source",
        "",
    ]
    if kind == "prompt":
        return [*lines, "# encode: {max_length: 2048}     # longer prompts are dropped"]
    pack = {"pretrain": "best_fit", "sft": "none", "preference": "none"}[kind]
    lines += ["encode:", "  max_length: 2048               # tokens"]
    if kind != "preference":
        lines.append(f"  pack: {pack:<24} # none | concat | best_fit")
    unit = {"pretrain": "tokens", "sft": "loss_tokens", "preference": "records"}[kind]
    return [
        *lines,
        "",
        "# mix:",
        f"#   unit: {unit:<22} # what weights and size mean",
        "#   size: 10M                    # default: the most that breaks no cap",
    ]


def _tokenizer(paths: Sequence[str], base: str, kind: Kind) -> tuple[str, str]:
    """A tokenizer folder beside the data or the recipe, with a chat template where the kind needs one; else one on the Hub."""
    for folder in map(Path, (base, *paths)):
        for place in (folder, folder / "tokenizer"):
            config = place / "tokenizer_config.json"
            with suppress(OSError, ValueError):
                if (place / "tokenizer.json").is_file() and (
                    kind == "pretrain"
                    or (place / "chat_template.jinja").is_file()
                    or "chat_template" in json.loads(config.read_text(encoding="utf-8"))
                ):
                    return _relative(str(place), base), ""
    return _FALLBACK_TOKENIZER, "put the tokenizer of your model here: a folder, a tokenizer.json or a Hub id"


def _relative(path: str, base: str) -> str:
    """A path as a recipe in ``base`` names it."""
    return path if "://" in path else Path(os.path.relpath(path, base)).as_posix()


def _scalar(text: str) -> str:
    """A YAML scalar, quoted where it must be."""
    plain = re.fullmatch(r"[\w./][\w./@ +-]*(?<! )", text) and not re.fullmatch(
        r"[\d._+-]+|[Nn]ull|[Tt]rue|[Ff]alse|[Yy]es|[Nn]o|[Oo]n|[Oo]ff", text
    )
    return text if plain else json.dumps(text, ensure_ascii=False)


def one_line(text: str, max_chars: int = 90) -> str:
    """The beginning of a text on one printable line."""
    short = re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in text[: 4 * max_chars])).strip()
    return short if len(short) <= max_chars else short[: max_chars - 1] + "…"


def near_columns(values: Sequence[Any]) -> tuple[tuple[str, str], ...]:
    """A column map for rows whose fields have other names: ``content`` is text, 问题 with 回答 a question and its answer."""
    rows = [value for value in values if isinstance(value, dict)]
    counts = Counter(k for row in rows for k, v in row.items() if isinstance(v, str) and v.strip())
    texts = [field for field, num in counts.items() if num >= 0.95 * len(rows)]
    plain = {str(field).lower(): str(field) for field in texts}
    question = next((plain[name] for name in _QUESTIONS if name in plain), None)
    answer = next((plain[name] for name in _ANSWERS if name in plain), None)
    if question and answer:
        return (("instruction", question), ("output", answer))
    text = next((plain[name] for name in _TEXTS if name in plain), None)
    alone = texts[0] if len(texts) == 1 else None
    field = text or alone
    return (("text", field),) if field and not (question or answer) else ()
