"""Train the samples' own tokenizer: byte-level BPE on the words of the files beside this script.

    python samples/make_tokenizer.py

Writes tokenizer.json and tokenizer_config.json into samples/tokenizer/; chat_template.jinja there is written by hand.
The same files give the same bytes, so a changed sample shows as a changed tokenizer. Takes a second or two.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
VOCAB_SIZE = 6000
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Where a token may never reach across: contractions, words with the blank before them, three digits at most, marks,
# line ends, blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sample_files() -> list[Path]:
    """Every input that is read right, in a fixed order."""
    found = [
        p for room in ("raw", "sft", "preference", "prompt") for p in (HERE / room).rglob("*") if p.is_file()
    ]
    return sorted(
        (p for p in found if p.name != "broken.jsonl"), key=lambda p: p.relative_to(HERE).as_posix()
    )


def words(path: Path) -> Iterator[str]:
    """The texts in one file, without the field names around them."""
    if path.suffix == ".csv":
        with path.open(encoding="gb18030", newline="") as stream:
            for row in csv.DictReader(stream):
                yield from row.values()
        return
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text("utf-8")
    if path.suffix == ".json":
        yield from leaves(json.loads(text))
    elif ".jsonl" in path.suffixes:
        for line in text.split("\n"):
            if line:
                yield from leaves(json.loads(line))
    else:
        yield text


def leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from leaves(child)
    elif isinstance(value, list):
        for child in value:
            yield from leaves(child)


def train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for path in sample_files() for text in words(path)), trainer)
    return tokenizer


def main() -> None:
    folder = HERE / "tokenizer"
    folder.mkdir(exist_ok=True)
    tokenizer = train()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False) + "\n", "utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    print(f"{tokenizer.get_vocab_size()} tokens -> {folder / 'tokenizer.json'}")


if __name__ == "__main__":
    main()
