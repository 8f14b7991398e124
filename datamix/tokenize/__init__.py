"""Records to token ids with train masks: any fast tokenizer, any chat template, text that can never become control."""

from __future__ import annotations

from datamix.tokenize.document_encoder import split_points
from datamix.tokenize.encoder import Encoder, EncodeSpec, load
from datamix.tokenize.stats import fertility, read_alphabet
from datamix.tokenize.tokenizer_files import TokenizerFiles, copy_tokenizer, decoder, find_tokenizer
from datamix.tokenize.truncate import fit

__all__ = [
    "EncodeSpec",
    "Encoder",
    "TokenizerFiles",
    "copy_tokenizer",
    "decoder",
    "fertility",
    "find_tokenizer",
    "fit",
    "load",
    "read_alphabet",
    "split_points",
]
