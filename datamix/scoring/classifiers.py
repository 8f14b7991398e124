"""Classifiers that others trained: any fastText ``.bin`` and any Hugging Face model for sequence classification.

With a label the score is its probability. Without one it is the model's own number where it has a single output (regression), or the
expected value where all labels are numbers (``__label__0`` to ``__label__5``); any other model needs a label. fastText takes a text as one
line. Of long texts a Hugging Face model sees as many tokens as it takes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.core.errors import DataError, RecipeError
from datamix.scoring.likelihood import require_torch

_PREFIX = "__label__"
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_BATCH = 16


@lru_cache(maxsize=1)
def _fasttext(path: str) -> Any:
    try:
        import fasttext
    except ModuleNotFoundError:
        raise RecipeError(
            "--by fasttext needs the package fasttext-community. Install the extra: pip install 'datamix-toolkit[score]'."
        ) from None
    try:
        return fasttext.load_model(path)
    except (ValueError, MemoryError) as error:
        raise DataError(f"--by fasttext:{path}: the file is no fastText model ({error}).") from None


def label_weights(labels: Sequence[str], label: str | None, where: str) -> NDArray[np.float64]:
    """What the probability of each label counts in the score. Raises RecipeError where that is open."""
    short = [name.removeprefix(_PREFIX) for name in labels]
    if label is not None:
        chosen = [i for i, name in enumerate(labels) if label in (name, short[i])]
        if not chosen:
            raise RecipeError(f"{where}: it has no label {label!r}; its labels: {', '.join(short[:20])}.")
        return np.array([float(i in chosen) for i in range(len(labels))])
    if not all(_NUMBER.fullmatch(name) for name in short):
        raise RecipeError(
            f"{where}: which label is meant? Name it behind `#`: {', '.join(short[:20])}. (Without one, labels must be numbers.)"
        )
    return np.array([float(name) for name in short])


@dataclass(frozen=True)
class FastText:
    """The scorer of a fastText model."""

    path: str
    label: str | None = None

    def check(self) -> None:
        """Raises RecipeError or DataError where the model cannot be used."""
        label_weights(_fasttext(self.path).get_labels(), self.label, f"--by fasttext:{self.path}")

    def score_texts(self, texts: Sequence[str | None]) -> NDArray[np.float64]:
        """The probability of the label, or the expected value of the labels, of each text."""
        model = _fasttext(self.path)
        labels = model.get_labels()
        weights = dict(
            zip(labels, label_weights(labels, self.label, f"--by fasttext:{self.path}"), strict=True)
        )
        lines = [" ".join((text or "").split()) for text in texts]
        found, chances = model.predict(lines, k=-1) if lines else ([], [])
        scores = [
            sum(weights[name] * float(chance) for name, chance in zip(names, of, strict=True))
            if line else np.nan
            for line, names, of in zip(lines, found, chances, strict=True)
        ]  # fmt: skip
        return np.array(scores, np.float64)


@lru_cache(maxsize=1)
def _classifier(name: str) -> tuple[Any, Any, Any]:
    import torch
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--by classifier:{name} cannot be loaded: {' '.join(str(error).split())[:300]}. Name a folder or a Hub id."
        ) from None
    return model.to(device).eval(), tokenizer, device


@dataclass(frozen=True)
class Classifier:
    """The scorer of a Hugging Face model."""

    model: str
    label: str | None = None

    def _labels(self, model: Any) -> NDArray[np.float64] | None:
        """What each output counts; None for a single number."""
        names = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
        if len(names) == 1:
            return None
        names = [re.sub(r"^LABEL_(?=\d+$)", "", name) for name in names] if self.label is None else names
        return label_weights(names, self.label, f"--by classifier:{self.model}")

    def check(self) -> None:
        """Raises RecipeError where the model cannot be used."""
        require_torch(f"--by classifier:{self.model}")
        self._labels(_classifier(self.model)[0])

    def score_texts(self, texts: Sequence[str | None]) -> NDArray[np.float64]:
        """The probability of the label, the expected value of the labels, or the single output, of each text."""
        import torch

        model, tokenizer, device = _classifier(self.model)
        weights = self._labels(model)
        limit = min(int(getattr(model.config, "max_position_embeddings", 512)), 8192)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i] or ""))
        scores = np.full(len(texts), np.nan)
        for low in range(0, len(order), _BATCH):
            at = [i for i in order[low : low + _BATCH] if texts[i]]
            if not at:
                continue
            batch = tokenizer(
                [texts[i] for i in at], truncation=True, max_length=limit, padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                logits = (
                    model(**{name: value.to(device) for name, value in batch.items()}).logits.double().cpu()
                )
            scores[at] = logits[:, 0].numpy() if weights is None else logits.softmax(-1).numpy() @ weights
        return scores
