"""Render conversations with a chat template, exactly as transformers' ``apply_chat_template(tokenize=False)`` does.

The template runs in transformers' own Jinja sandbox. The one difference is the clock: ``strftime_now`` answers a fixed
day, so that no training set depends on when it was built. A record's own ``chat_template_kwargs`` win over the recipe's.
Cost: 10 to 50 microseconds a conversation; one that takes more than 10 seconds stops the build.
"""

from __future__ import annotations

import datetime
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from datamix.core.errors import RecipeError

LIMIT_SECONDS = 10.0  # of processor time for one rendering
TODAY = datetime.datetime(2024, 7, 26)  # what strftime_now answers
_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")


class TemplateFailure(Exception):
    """A template refused a conversation, or what it wrote cannot be understood; the text says why."""


class Renderer:
    """One chat template with the named tokens it may print."""

    def __init__(
        self, template: str, named_tokens: Sequence[tuple[str, str]], kwargs: dict[str, Any]
    ) -> None:
        chat_template_utils = _transformers_templates()
        self._template = chat_template_utils._compile_jinja_template(template)
        self.tree = self._template.environment.parse(template)
        self._values = {**dict(named_tokens), "strftime_now": TODAY.strftime}
        self._values.update({key: value for key, value in kwargs.items() if key not in _GIVEN})

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        kwargs: dict[str, Any],
        generation_prompt: bool,
    ) -> str:
        """The text of a conversation; raises TemplateFailure where the template does."""
        values = {**self._values, **kwargs} if kwargs else dict(self._values)
        values.update(messages=messages, tools=tools, documents=None, add_generation_prompt=generation_prompt)
        try:
            with _limited():
                return str(self._template.render(values))
        except RecipeError:
            raise
        except Exception as error:  # its own raise_exception, a type, an attribute: it may fail in any way
            lines = str(error).strip().splitlines()
            raise TemplateFailure(lines[0][:200] if lines else type(error).__name__) from error


def _transformers_templates() -> Any:
    """transformers' template module, imported without its remark that PyTorch is missing."""
    logger = logging.getLogger("transformers")
    logger.addFilter(_is_error)
    try:
        from transformers.utils import chat_template_utils
    finally:
        logger.removeFilter(_is_error)
    return chat_template_utils


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def _limited() -> Iterator[None]:
    """Stop a template that loops: signals reach only the main thread, elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise RecipeError(
        f"chat_template: one conversation took the template more than {LIMIT_SECONDS:.0f} seconds of processor time. "
        "It loops; name another template with `chat_template`."
    )
