"""Render examples with a chat template before a build, in two processes of limited memory and time and unlike hash seeds.

Only templates that ``template_limits.examine`` does not know to be linear come so far. What a limit stops is refused at once, with
its line where the template is still running; texts that differ are chance.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

from datamix.core.errors import RecipeError
from datamix.tokenize.template_limits import examine, parse
from datamix.tokenize.tokenizer_files import TokenizerFiles

_SECONDS, _BYTES = 10, 1 << 30  # of one process, beyond what it needs to start
_SCRIPT = f"from {__name__} import render_examples; render_examples()"
_ADVICE = "Change the template, or name another with `chat_template`."


def check_templates(files: TokenizerFiles, kwargs: str) -> None:
    """Raise RecipeError where a template of a tokenizer is no Jinja, or does what it may not. ``kwargs``: as JSON text."""
    name = files.template_name or f"the template of {files.name}"
    for template in (files.chat_template, files.tool_template):
        if template is not None:
            _check(template, files.named_tokens, kwargs, name)


@cache
def _check(source: str, named_tokens: tuple[tuple[str, str], ...], kwargs: str, name: str) -> None:
    problems, needs_guard = examine(parse(source, name))
    if problems:
        line, text = problems[0]
        raise RecipeError(f"chat_template: {name}, line {line}: {text}. {_ADVICE}")
    if needs_guard:
        _probe(json.dumps([source, named_tokens, json.loads(kwargs), name]), name)


def _probe(request: str, name: str) -> None:
    """Render examples in two processes of limited memory and time, with unlike seeds. Raises RecipeError where one fails so, or
    where their texts differ."""
    command = [sys.executable, "-c", _SCRIPT]
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    runs = []
    for seed in ("1", "2"):
        environment = {**os.environ, **path, "PYTHONHASHSEED": seed}
        pipe = subprocess.PIPE
        runs.append(
            subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, text=True
            )
        )
    answers: list[dict[str, str]] = []
    for run in runs:
        written, _ = run.communicate(request)
        if run.returncode:
            text = f"it takes more than {_SECONDS} seconds of processor time or {_BYTES >> 30} GB for one conversation"
            raise RecipeError(f"chat_template: {name}: {text}. {_ADVICE}")
        answers.append(json.loads(written))
    for answer in answers:
        if answer["error"]:
            raise RecipeError(answer["error"])
    if answers[0]["sha256"] != answers[1]["sha256"]:
        text = "it writes other text each time (not deterministic)"
        raise RecipeError(f"chat_template: {name}: {text}. {_ADVICE}")


def render_examples() -> None:
    """The work of a probe: a request on stdin, what the examples gave on stdout."""
    import random

    from datamix.tokenize.chat_template import ChatTemplate, TemplateFailure

    random.seed(os.environ["PYTHONHASHSEED"])
    source, named, kwargs, name = json.loads(sys.stdin.read())
    ChatTemplate("", [], {})
    _limit_process()
    texts, error = [], ""
    try:
        template = ChatTemplate(source, [(a, b) for a, b in named], kwargs, name)
        for messages, tools in _EXAMPLES:
            for prompt in (False, True):
                try:
                    texts.append(template.render(messages, tools, {}, prompt))
                except TemplateFailure as failure:
                    if isinstance(failure.__cause__, RecursionError):
                        text = "a macro calls itself without end"
                        raise RecipeError(f"chat_template: {name}: {text}. {_ADVICE}") from None
                    texts.append(str(failure))
    except RecipeError as refused:
        error = str(refused)
    except MemoryError:
        text = f"it takes more than {_BYTES >> 30} GB for one conversation"
        error = f"chat_template: {name}: {text}. {_ADVICE}"
    print(json.dumps({"sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(), "error": error}))


def _limit_process() -> None:
    """Limit the memory of this process, beyond what it has now, and its processor time."""
    import resource

    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + _SECONDS + 3, used + _SECONDS + 5))
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + _BYTES, size + _BYTES))


_TALK = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": [1, "x"]}}}
_PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array"}},
    "required": ["a"],
}
_TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": _PARAMETERS}}
_EXAMPLES: list[tuple[list[dict[str, Any]], list[Any] | None]] = [
    (_TALK, None),
    (
        [{"role": "system", "content": "Be brief."}, *_TALK, *_TALK, {"role": "user", "content": "世界 <b>"}],
        None,
    ),
    (
        [
            _TALK[0],
            {"role": "assistant", "content": "", "reasoning_content": "Add them.", "tool_calls": [_CALL]},
            {"role": "tool", "name": "add", "tool_call_id": "c1", "content": '{"sum": 4}'},
            _TALK[1],
        ],
        [_TOOL],
    ),
]
