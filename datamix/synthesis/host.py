"""One host behind an OpenAI-compatible endpoint: a request out, an answer or a failure in.

The official client sends; the body is read here, because hosts differ in what they leave out. Retries are the runner's, so that
each request is paid for knowingly. ``HostProfile`` is what the checks found: how a prompt is sent so that no second BOS gets into
it, and which parameters the host refuses. The key is in the header alone: no error, log or file holds it.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from datamix.core.errors import RecipeError
from datamix.synthesis.calls import Answer, Call

_CONNECTIONS = 1100  # more than are ever in flight
_PERMANENT = (400, 404, 405, 413, 415, 422)
_FORBIDDEN = (401, 403)
_BUSY = (408, 409, 425, 429, 503, 529)


class CallFailed(Exception):
    """A request without an answer."""

    def __init__(
        self, why: str, is_busy: bool = False, is_permanent: bool = False, is_sent: bool = True
    ) -> None:
        super().__init__(why)
        self.is_busy, self.is_permanent = is_busy, is_permanent
        self.is_sent = is_sent  # the host may have worked on it, and billed it
        self.retry_after: float | None = None


@dataclass(frozen=True)
class HostProfile:
    """How requests must be sent to a host; found by ``host_checks``."""

    adds_bos: bool = False  # the host writes BOS before a prompt by itself: ours is left out
    takes_ids: bool = False  # prompts are sent as ids, because the host would add to their text
    ignores_stops: bool = False  # what follows a stop is cut here, and paid for
    plain_parameters: bool = False  # it refuses parameters that are not OpenAI's
    without_seed: bool = False
    identity: tuple[str, str, int] = (
        "",
        "",
        0,
    )  # model as named, greedy answer to a probe, tokens of its prompt


@dataclass(frozen=True)
class Endpoint:
    """Where the host is; ``api_key`` is never printed."""

    base_url: str
    model: str
    api_key: str = ""
    timeout_seconds: float = 600.0

    def __repr__(self) -> str:
        return f"Endpoint({self.base_url!r}, {self.model!r})"


class Host:
    """Sends requests by one profile; ``bos`` and ``encode`` are of the tokenizer, where a profile needs them."""

    def __init__(self, endpoint: Endpoint, profile: HostProfile, bos: str = "", encode: Any = None) -> None:
        try:
            import openai  # heavy
        except ModuleNotFoundError:
            raise RecipeError(
                "`datamix synth` sends through the official client, which is not installed. "
                'Install it with `pip install "datamix-toolkit[synth]"`.'
            ) from None
        self.endpoint, self.profile, self.bos, self.encode = endpoint, profile, bos, encode
        limits = type(openai.DEFAULT_CONNECTION_LIMITS)(
            max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS
        )
        patience = openai.Timeout(endpoint.timeout_seconds, connect=min(20.0, endpoint.timeout_seconds))
        pool = openai.DefaultAsyncHttpxClient(limits=limits, timeout=patience)
        self._client = openai.AsyncOpenAI(
            base_url=endpoint.base_url, api_key=endpoint.api_key or "none", max_retries=0, http_client=pool
        )

    async def ask(self, call: Call, timeout: float | None = None) -> Answer:
        """The answer to one request, cut at its stops. Raises CallFailed; RecipeError where the host lets nobody in."""
        return _cut(await self.ask_uncut(call, timeout), call.stops)

    async def ask_uncut(self, call: Call, timeout: float | None = None) -> Answer:
        """The answer as the host gives it."""
        import openai

        timeout = timeout or self.endpoint.timeout_seconds
        body = self.body(call)
        try:
            if call.prompt is not None:
                model, prompt = body.pop("model"), body.pop("prompt")
                create = self._client.completions.with_raw_response.create
                raw = (await create(model=model, prompt=prompt, extra_body=body, timeout=timeout)).content
            else:
                model, messages = body.pop("model"), body.pop("messages")
                chat = self._client.chat.completions.with_raw_response.create
                raw = (await chat(model=model, messages=messages, extra_body=body, timeout=timeout)).content
        except openai.APIStatusError as error:
            raise self._refused(error.status_code, error.response.headers, error.response.content) from None
        except openai.APITimeoutError:
            raise CallFailed(f"no answer within {timeout:.0f} s") from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            is_sent = type(cause).__name__ not in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol")
            name = "the connection was cut" if is_sent else "the host is not reached"
            raise CallFailed(f"{name} ({type(cause).__name__})", is_sent=is_sent) from None
        return self._read(raw, call)

    async def close(self) -> None:
        await self._client.close()

    def body(self, call: Call) -> dict[str, Any]:
        """The JSON of a request, as this host takes it."""
        sampling, profile = call.sampling, self.profile
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": call.seed,
        }
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if call.stops:
            body["stop"] = list(call.stops[:4]) if profile.plain_parameters else list(call.stops)
        if profile.without_seed:
            del body["seed"]
        if call.prompt is None:
            body["messages"] = [{"role": role, "content": content} for role, content in call.messages]
            if call.logprobs:
                body["logprobs"] = True
            return body
        body["prompt"] = call.prompt
        if profile.takes_ids:
            body["prompt"] = self.encode(call.prompt)
        elif profile.adds_bos and self.bos:
            body["prompt"] = call.prompt.removeprefix(self.bos)
        if call.logprobs:
            body["logprobs"] = 1
        if not profile.plain_parameters:  # vLLM's and SGLang's: a control token in an answer shows a leak
            body["skip_special_tokens"] = False
        return body

    def _read(self, raw: bytes, call: Call) -> Answer:
        try:
            value = orjson.loads(raw)
            choice = value["choices"][0]
            text = choice["message"]["content"] if call.prompt is None else choice["text"]
            usage = value.get("usage") or {}
            if not isinstance(text, str | None):
                raise TypeError
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
            raise CallFailed(f"the answer is not what the API has: {_excerpt(raw)}") from None
        prompt_tokens, completion_tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return Answer(
            text=text or "",
            finish=str(choice.get("finish_reason") or "stop"),
            prompt_tokens=prompt_tokens if isinstance(prompt_tokens, int) else call.num_prompt_tokens,
            completion_tokens=completion_tokens
            if isinstance(completion_tokens, int)
            else call.sampling.max_tokens,
            model=str(value.get("model") or ""),
            logprob=_mean_logprob(choice.get("logprobs")) if call.logprobs else None,
        )

    def _refused(self, status: int, headers: Mapping[str, str], raw: bytes) -> Exception:
        key = self.endpoint.api_key
        said = _excerpt(raw)
        said = said.replace(key, "***") if key else said
        if status in _FORBIDDEN:
            return RecipeError(
                f"endpoint: {self.endpoint.base_url} refuses the key (HTTP {status}: {said}). Set the variable that "
                "endpoint.api_key_env names to a key of this host."
            )
        failure = CallFailed(
            f"HTTP {status}: {said}", status in _BUSY, status in _PERMANENT, is_sent=status not in _BUSY
        )
        failure.is_sent = status >= 500 and status not in _BUSY
        failure.retry_after = _seconds(headers.get("retry-after"))
        return failure


def _cut(answer: Answer, stops: tuple[str, ...]) -> Answer:
    """What a host that ignores ``stop`` wrote behind one is no part of the answer."""
    ends = [at for stop in stops if (at := answer.text.find(stop)) >= 0]
    return replace(answer, text=answer.text[: min(ends)], finish="stop") if ends else answer


def _mean_logprob(value: Any) -> float | None:
    """The mean of the tokens' logprobs, of either endpoint's form; None where the host gives none."""
    if not isinstance(value, dict):
        return None
    numbers = value.get("token_logprobs")
    if isinstance(value.get("content"), list):
        numbers = [token.get("logprob") for token in value["content"] if isinstance(token, dict)]
    numbers = [n for n in numbers if isinstance(n, int | float)] if isinstance(numbers, list) else []
    return sum(numbers) / len(numbers) if numbers else None


def _seconds(header: str | None) -> float | None:
    """``Retry-After`` as seconds: a number, or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _excerpt(raw: bytes) -> str:
    text = " ".join(raw[:600].decode("utf-8", "replace").split())
    return f"{text[:200]}..." if len(text) > 200 else text or "nothing"
