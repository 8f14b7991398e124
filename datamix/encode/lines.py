"""Tokens after which an over-long document is best split: those that end a line or a sentence."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ENDS = re.compile(r"(\n\s*|[.!?。！？…][\"'”’»」』)）\]】]*\s*)\Z")


def ends_of_lines(tokenizer: Any, vocab_size: int) -> NDArray[np.bool_]:
    """``[vocab_size]``: True where the decoded token ends with a newline or a full stop in any of many scripts."""
    texts = tokenizer.decode_batch([[token] for token in range(vocab_size)], skip_special_tokens=False)
    return np.fromiter((_ENDS.search(text) is not None for text in texts), np.bool_, vocab_size)
