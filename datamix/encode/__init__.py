"""Records to token ids with train masks: any fast tokenizer, any chat template, text that can never become control."""

from __future__ import annotations

from datamix.encode.encoder import Encoder, EncodeSpec, load
from datamix.encode.fertility import fertility, read_alphabet
from datamix.encode.files import TokenizerFiles, decoder, find_tokenizer
from datamix.encode.lines import line_ends

__all__ = [
    "EncodeSpec",
    "Encoder",
    "TokenizerFiles",
    "decoder",
    "fertility",
    "find_tokenizer",
    "line_ends",
    "load",
    "read_alphabet",
]
