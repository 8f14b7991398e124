"""The parsed form of a tokenizer as a result in the cache, by the digest of its file.

Parsing 18 MB takes a quarter second, and as much again where an encoder is loaded; reading what is left of it ten milliseconds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from datamix.core.contracts import Task
from datamix.core.hashing import digest
from datamix.pipeline.prepare_sources import BuildContext
from datamix.pipeline.progress import say_damaged
from datamix.pipeline.store import Store, carry
from datamix.tokenize import TokenizerFiles
from datamix.tokenize.plain_spec import PARSED_VERSION
from datamix.tokenize.tokenizer_files import parsed_tokenizer


def find_parsed(home: Path | None, sha256: str, contents: tuple[str, ...]) -> Path | None:
    """The folder of the parsed form of the tokenizer.json with this digest; ``contents``: its named tokens."""
    receipt = None if home is None else Store(home).find(_parsed_key(sha256, contents))
    return None if receipt is None else receipt.folder


def _parsed_key(sha256: str, contents: tuple[str, ...]) -> str:
    return digest("tokenizer", PARSED_VERSION, sha256, contents)


def _write_parsed(files: TokenizerFiles, folder: Path) -> dict[str, Any]:
    parsed_tokenizer(files).write(folder)
    return {}


def cached_tokenizer(context: BuildContext, files: TokenizerFiles) -> TokenizerFiles:
    """The tokenizer with its parsed form in the cache."""
    if files.parsed is not None:
        return files
    key = _parsed_key(files.sha256, files.contents)
    context.name([key])
    receipt = carry(Task("tokenizer", key, _write_parsed, files, context.home))
    say_damaged(context.screen, [receipt])
    return replace(files, parsed=str(receipt.folder))
