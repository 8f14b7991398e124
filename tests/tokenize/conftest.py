"""The tokenizers that all tests of this room share."""

from __future__ import annotations

from pathlib import Path

import pytest
from encode_tokenizers import save_all


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each chat template, with a tokenizer of its family's kind."""
    return save_all(tmp_path_factory.mktemp("tokenizers"))
