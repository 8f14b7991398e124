"""Records to token ids with loss masks, for any fast tokenizer and any chat template.

A conversation takes four steps. The example has two turns, plain ChatML and the tokenizer of Qwen2.5, and
trains what the assistant says (``loss_on: assistant``); ``⏎`` is a newline::

    user: Hi
    assistant: Hello!

1. ``placeholders``. The template renders the *shape* of the conversation, with a sentinel in the slot of each
   text. This separates the control tokens that the template writes from those that a text may spell::

    <|im_start|>user⏎{0}<|im_end|>⏎<|im_start|>assistant⏎{1}<|im_end|>⏎

2. ``loss_spans``. An answer is trained from the end of its generation prompt to the token that ends it::

    {1}<|im_end|>

3. ``segments``. Cut at control tokens and at the borders of spans, the rendering becomes a layout: ids of
   control tokens, and segments of text (``+``: trained)::

    151644 'user⏎{0}' 151645 '⏎' 151644 'assistant⏎' +'{1}' +151645 '⏎'

4. ``batch``. With the texts in the slots, the segments of all records of a batch are encoded in one call. No
   control token can come out of them: the plain tokenizer (``tokenizer``) has none::

    ids  151644 872 198 13048 151645 198 151644 77091 198 9707 0 151645 198
    mask      0   0   0     0      0   0      0     0   0    1 1      1   0

``renderer`` runs steps 1 to 3 once per shape and checks that the filled placeholders equal the real
rendering, unless ``template_analysis`` shows that they must. ``column_encoder`` takes the records of known shapes together,
without a Python object for each. ``encoder`` is the entry point; ``truncate``
makes over-long records fit, ``pack`` puts records into rows, ``document_encoder`` encodes plain documents.
Cost: about 2 million tokens/s and core with ``tokenizers``, several times that with ``fastokens``; a
rendering is 10 to 50 microseconds.
"""

from __future__ import annotations

from datamix.tokenize.document_encoder import split_points
from datamix.tokenize.encoder import Encoder, EncodeSpec, load
from datamix.tokenize.stats import fertility, read_alphabet
from datamix.tokenize.template_probe import check_templates
from datamix.tokenize.tokenizer_files import TokenizerFiles, copy_tokenizer, decoder, find_tokenizer
from datamix.tokenize.truncate import fit

__all__ = [
    "EncodeSpec",
    "Encoder",
    "TokenizerFiles",
    "check_templates",
    "copy_tokenizer",
    "decoder",
    "fertility",
    "find_tokenizer",
    "fit",
    "load",
    "read_alphabet",
    "split_points",
]
