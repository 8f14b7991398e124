"""An OpenAI-compatible host for tests: deterministic answers, a known pace, and every fault that real ones have.

It works on ``slots`` requests at a time and lets the others wait, as vLLM does; an answer takes ``seconds`` and ``token_seconds`` for
each of its tokens. Faults come by the number of the request or by what is asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Fault = Callable[[int, dict[str, Any]], str | None]  # (number of the request, its body) -> name of a fault

WORDS = {
    "en": [
        "how",
        "why",
        "what",
        "explain",
        "write",
        "list",
        "compare",
        "simple",
        "table",
        "river",
        "music",
        "engine",
        "history",
        "recipe",
        "number",
        "garden",
        "planet",
        "winter",
        "market",
        "letter",
        "school",
        "doctor",
        "python",
        "code",
        "story",
        "travel",
        "water",
        "energy",
    ],
    "zh": [
        "怎样",
        "为什么",
        "解释",
        "写",
        "列出",
        "比较",
        "简单",
        "表格",
        "河流",
        "音乐",
        "发动机",
        "历史",
        "菜谱",
        "数字",
        "花园",
        "行星",
        "冬天",
        "市场",
        "信件",
        "学校",
        "医生",
        "代码",
        "故事",
        "旅行",
        "水",
        "能量",
    ],
}


def no_fault(number: int, body: dict[str, Any]) -> str | None:
    return None


@dataclass
class FakeHost:
    """What it does, and what it was asked."""

    name: str = "small"
    slots: int = 64
    seconds: float = 0.0
    token_seconds: float = 0.0
    fault: Fault = no_fault
    reply: Callable[[dict[str, Any], str], str] | None = None  # (body, prompt) -> text; None: words by hash
    templates: bool = False  # it applies a chat template to completions
    adds_bos: bool = False
    takes_ids: bool = True
    ignores_stops: bool = False
    strict: bool = False  # refuses parameters that are not OpenAI's
    repeats: bool = False
    with_usage: bool = True
    with_logprobs: bool = True
    count: Callable[[str], int] = len  # tokens of a prompt
    decode: Callable[[list[int]], str] = str
    salt: str = ""  # another one is another model
    url: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)  # bodies of requests that were answered
    num_requests: int = 0
    keys: set[str] = field(default_factory=set)  # Authorization headers
    in_flight: int = 0
    most_in_flight: int = 0
    _queue: asyncio.Semaphore | None = None

    def text(self, body: dict[str, Any], prompt: str) -> str:
        """Words by a hash of prompt and seed: the same request gets the same answer."""
        if self.reply is not None:
            return self.reply(body, prompt)
        seed = 0 if self.repeats or not body.get("temperature") else body.get("seed")
        prompt = "" if self.repeats else prompt
        state = hashlib.sha256(f"{self.salt}|{prompt}|{seed}".encode()).digest()
        words = WORDS["zh" if "中" in prompt or state[0] % 2 else "en"]
        count = 5 + state[1] % 12
        numbers = hashlib.shake_256(state).digest(count)
        return " ".join(words[n % len(words)] for n in numbers) + f" {state[2]}{state[3]}."

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.num_requests += 1
        self.keys.add(request.headers.get("Authorization", ""))
        fault = self.fault(self.num_requests, body)
        assert self._queue is not None
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if fault:
                return await self._fail(fault, request)
            if self.strict and (extra := {"skip_special_tokens", "stop_token_ids"} & set(body)):
                return web.json_response({"error": {"message": f"unknown parameter {extra}"}}, status=400)
            async with self._queue:
                return await self._whole(body, request.path)
        finally:
            self.in_flight -= 1

    async def _whole(self, body: dict[str, Any], path: str) -> web.Response:
        is_chat = path.endswith("/chat/completions")
        prompt = json.dumps(body["messages"]) if is_chat else body["prompt"]
        if isinstance(prompt, list) and not self.takes_ids:
            return web.json_response({"error": {"message": "prompt must be text"}}, status=400)
        num_prompt = len(prompt) if isinstance(prompt, list) else self.count(prompt)
        if isinstance(prompt, list):
            prompt = self.decode(prompt)
        elif not is_chat:
            num_prompt += self.adds_bos + 9 * self.templates
        text = self.text(body, "<user>" + prompt + "<assistant>" if self.templates else prompt)
        tokens = text.split(" ")
        finish = "stop"
        if len(tokens) > body["max_tokens"]:
            tokens, finish = tokens[: body["max_tokens"]], "length"
            text = " ".join(tokens)
        ends = [at for stop in body.get("stop", []) if (at := text.find(stop)) >= 0]
        if ends and not self.ignores_stops:
            text, finish = text[: min(ends)], "stop"
            tokens = text.split(" ")
        await asyncio.sleep(self.seconds + self.token_seconds * len(tokens))
        self.asked.append(body)
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        if body.get("logprobs") and self.with_logprobs:
            values = [-0.1 * (1 + len(token) % 5) for token in tokens]
            content = [{"token": t, "logprob": v} for t, v in zip(tokens, values, strict=True)]
            choice["logprobs"] = {"content": content} if is_chat else {"token_logprobs": values}
        value: dict[str, Any] = {"id": "x", "object": "x", "model": self.name, "choices": [choice]}
        if self.with_usage:
            value["usage"] = {"prompt_tokens": num_prompt, "completion_tokens": len(tokens)}
        return web.json_response(value)

    async def _fail(self, fault: str, request: web.Request) -> web.StreamResponse:
        if fault == "429":
            return web.json_response({"error": {"message": "slow down"}}, status=429)
        if fault.startswith("429:"):
            headers = {"Retry-After": fault[4:]}
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers=headers)
        if fault == "silence":
            await asyncio.sleep(3600)
        if fault == "no json":
            return web.Response(text="<html>Bad gateway</html>", content_type="text/html")
        if fault == "wrong json":
            return web.json_response({"choices": []})
        if fault == "cut":
            response = web.StreamResponse(
                headers={"Content-Length": "1000", "Content-Type": "application/json"}
            )
            await response.prepare(request)
            await response.write(b'{"choices": [{"text": "ab')
            assert request.transport is not None
            request.transport.close()
            return response
        message = f"failed with {request.headers.get('Authorization', '')}"
        return web.json_response({"error": {"message": message}}, status=int(fault))

    @contextmanager
    def running(self) -> Iterator[FakeHost]:
        """Serve on a free port of this machine, in a thread."""
        loop = asyncio.new_event_loop()
        ready = threading.Event()
        runner: web.AppRunner

        async def start() -> None:
            nonlocal runner
            self._queue = asyncio.Semaphore(self.slots)
            app = web.Application(client_max_size=1 << 26)
            app.router.add_post("/v1/completions", self.answer)
            app.router.add_post("/v1/chat/completions", self.answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            ready.set()

        def serve() -> None:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(start())
            loop.run_forever()
            loop.run_until_complete(runner.cleanup())
            loop.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        ready.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)


def every(step: int, fault: str) -> Fault:
    """A fault at each ``step``-th request."""
    return lambda number, body: fault if number % step == 0 else None
