"""How far records lie from what a model writes itself: mean negative log-likelihood of their trained tokens, and IFD.

``nll``: the mean over the trained tokens of -log p(token | what stands before it), in nats: answers given their prompts in
conversations, every token but the first in texts. ``ifd``: instruction-following difficulty (Li et al. 2023, arXiv 2308.12032), the nll
of the answer given the prompt divided by the nll of the answer alone; near 1 the prompt does not help. Records come as ids and
which of them are trained, so masks and templates are those of a build. Of long records the first 4,096 tokens count. Costs one
forward pass a record, two for ``ifd``; at an endpoint one request each.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamix.core.errors import DataError, MachineError, RecipeError, mask_url

MAX_TOKENS = 4096
_BATCH_TOKENS = 8192  # padded tokens of one forward pass
_IN_FLIGHT = 8
Ids = NDArray[np.int64]
Trained = NDArray[np.bool_]
LikelihoodName = Literal["nll", "ifd"]


def targets(ids: Ids, trained: Trained) -> tuple[Ids, Trained]:
    """The first tokens of a record; its very first cannot be predicted."""
    ids, trained = ids[:MAX_TOKENS], trained[:MAX_TOKENS].copy()
    trained[:1] = False
    return ids, trained


def answers_alone(ids: Ids, trained: Trained) -> tuple[Ids, Trained]:
    """The trained tokens of a record without what stands before them."""
    alone = ids[:MAX_TOKENS][trained[:MAX_TOKENS]]
    return targets(alone, np.ones(len(alone), bool))


def _scores(
    name: LikelihoodName, given: NDArray[np.float64], alone: NDArray[np.float64]
) -> NDArray[np.float64]:
    if name == "nll":
        return given
    ratio: NDArray[np.float64] = np.divide(given, alone, out=np.full(len(given), np.nan), where=alone > 0)
    return ratio


@lru_cache(maxsize=1)
def _model(name: str) -> tuple[Any, Any]:
    import torch
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "auto" if device.type == "cuda" else torch.float32
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"--by {name}: the model cannot be loaded: {' '.join(str(error).split())[:300]}. Name a folder or a Hub id."
        ) from None
    return model.to(device).eval(), device


def require_torch(why: str) -> None:
    """Raises RecipeError where torch is not installed."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        raise RecipeError(
            f"{why} needs torch. Install the extra: pip install 'datamix-toolkit[torch]'."
        ) from None


@dataclass(frozen=True)
class Likelihood:
    """The scorer of a model that runs here, on a GPU where there is one."""

    model: str
    name: LikelihoodName

    def check(self) -> None:
        """Raises RecipeError where the model cannot be used."""
        require_torch(f"--by {self.name}:{self.model}")
        _model(self.model)

    def score_tokens(self, ids: Sequence[Ids], trained: Sequence[Trained]) -> NDArray[np.float64]:
        """The score of each record; NaN where nothing of it is trained."""
        given = self._means([targets(*row) for row in zip(ids, trained, strict=True)])
        if self.name == "nll":
            return given
        alone = self._means([answers_alone(*row) for row in zip(ids, trained, strict=True)])
        return _scores(self.name, given, alone)

    def _means(self, rows: Sequence[tuple[Ids, Trained]]) -> NDArray[np.float64]:
        import torch

        model, device = _model(self.model)
        means = np.full(len(rows), np.nan)
        for at in _batches([len(ids) if trained.any() else 0 for ids, trained in rows]):
            width = max(len(rows[i][0]) for i in at)
            block, mask = np.zeros((2, len(at), width), np.int64)
            for line, i in enumerate(at):
                block[line, : len(rows[i][0])] = rows[i][0]
                mask[line, : len(rows[i][0])] = 1
            with torch.no_grad():
                logits = model(
                    input_ids=torch.from_numpy(block).to(device),
                    attention_mask=torch.from_numpy(mask).to(device),
                    use_cache=False,
                ).logits
            for line, i in enumerate(at):
                places = np.flatnonzero(rows[i][1])
                wanted = torch.from_numpy(rows[i][0][places]).to(device)
                picked = logits[line, torch.from_numpy(places - 1).to(device)].float()
                means[i] = float(torch.nn.functional.cross_entropy(picked, wanted))
        return means


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Records of like lengths together, up to so many padded tokens; those of length 0 are in none."""
    batch: list[int] = []
    for i in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[i] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@dataclass(frozen=True)
class EndpointLikelihood:
    """The scorer of a model behind an OpenAI-compatible endpoint that gives the log-probabilities of a prompt (vLLM, SGLang)."""

    url: str
    model: str
    name: LikelihoodName

    def check(self) -> None:
        """Raises RecipeError or MachineError where the endpoint gives no log-probabilities of a prompt."""
        self._mean((np.array([1, 2, 3]), np.array([False, True, True])))

    def score_tokens(self, ids: Sequence[Ids], trained: Sequence[Trained]) -> NDArray[np.float64]:
        """The score of each record; NaN where nothing of it is trained."""
        rows = [targets(*row) for row in zip(ids, trained, strict=True)]
        if self.name == "ifd":
            rows += [answers_alone(*row) for row in zip(ids, trained, strict=True)]
        with ThreadPoolExecutor(_IN_FLIGHT) as pool:
            means = np.array(list(pool.map(self._mean, rows)))
        return _scores(self.name, means[: len(ids)], means[len(ids) :])

    def _mean(self, row: tuple[Ids, Trained]) -> float:
        ids, trained = row
        if not trained.any():
            return float("nan")
        answer = _completion(self.url, self.model, ids.tolist())
        logprobs = getattr(getattr(answer.choices[0], "logprobs", None), "token_logprobs", None) or []
        if len(logprobs) < len(ids) or any(logprobs[i] is None for i in np.flatnonzero(trained)):
            raise RecipeError(
                f"--by {self.name}:{mask_url(self.url)}: the server answered {len(logprobs)} log-probabilities for a prompt of "
                f"{len(ids)} tokens. It must take `echo` with `logprobs` and prompts as ids, as vLLM does; others cannot score."
            )
        return -float(np.mean([logprobs[i] for i in np.flatnonzero(trained)]))


@lru_cache(maxsize=1)
def _client(url: str) -> Any:
    try:
        import openai
    except ModuleNotFoundError:
        raise RecipeError(
            "Scores by an endpoint need the package openai. Install the extra: pip install 'datamix-toolkit[synth]'."
        ) from None
    key = os.environ.get("OPENAI_API_KEY", "none")
    return openai.OpenAI(base_url=url, api_key=key, max_retries=4, timeout=600)


def _completion(url: str, model: str, ids: list[int]) -> Any:
    """One request; what is busy is asked again by the client. Raises MachineError, RecipeError or DataError."""
    client = _client(url)
    import openai

    where = f"{mask_url(url)} ({model})"
    try:
        return client.completions.create(
            model=model, prompt=ids, max_tokens=1, echo=True, logprobs=1, temperature=0
        )
    except openai.APIConnectionError as error:
        raise MachineError(
            f"{where} cannot be reached: {error}. What is scored is kept: run the same command again when the server answers."
        ) from None
    except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
        raise RecipeError(
            f"{where} refuses the request: {error}. Check the address, the model's name and OPENAI_API_KEY."
        ) from None
    except openai.BadRequestError as error:
        raise DataError(
            f"{where} cannot score a prompt of {len(ids)} tokens: {error}. The server must take prompts as ids with `echo` and "
            f"`logprobs`, and {MAX_TOKENS} tokens of context."
        ) from None
    except openai.APIStatusError as error:
        raise MachineError(
            f"{where} failed: {error}. What is scored is kept: run the same command again."
        ) from None
