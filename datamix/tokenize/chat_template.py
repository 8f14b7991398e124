"""Render conversations with a chat template, as ``apply_chat_template(tokenize=False)`` of transformers does.

The template runs in the Jinja sandbox of transformers. The one difference is the clock: ``strftime_now``
returns a fixed day, so that no training set depends on when it was built. ``chat_template_kwargs`` of a
record override the recipe's. Cost: 10 to 50 microseconds a conversation; one that takes more than 10 seconds
stops the build.
"""

from __future__ import annotations

import datetime
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import FrameType, ModuleType
from typing import Any

from jinja2 import TemplateSyntaxError

from datamix.core.errors import RecipeError
from datamix.tokenize.template_limits import Refused, examine, guard, parse, printed_address

LIMIT_SECONDS = 10.0  # of processor time for one rendering
TODAY = datetime.datetime(2024, 7, 26)  # what strftime_now returns
_RESERVED_NAMES = ("messages", "tools", "documents", "add_generation_prompt")


class TemplateFailure(Exception):
    """A template refused a conversation, or its rendering cannot be analysed; the message says why."""


class ChatTemplate:
    """One compiled chat template with the named tokens it may print. Raises RecipeError where it is no Jinja."""

    def __init__(
        self,
        source: str,
        named_tokens: Sequence[tuple[str, str]],
        kwargs: dict[str, Any],
        name: str = "the template",
    ) -> None:
        self._source, self._name = source, name
        compile_ = _transformers_templates()._compile_jinja_template
        environment = compile_("").environment
        self.tree = parse(source, name, environment)  # syntax tree of Jinja
        problems, needs_guard = examine(self.tree)
        if problems:
            raise self._refused(*problems[0])
        if needs_guard:
            environment = compile_.__wrapped__("").environment  # one of its own
            guard(environment)
        try:
            self._template = environment.from_string(source)
        except RecursionError:
            raise self._refused(0, "its expressions are nested too deeply") from None
        except TemplateSyntaxError as error:  # an operation that Jinja does not know
            raise self._refused(
                error.lineno, f"it is not valid Jinja: {str(error.message).rstrip('.')}"
            ) from error
        self._values = {**dict(named_tokens), "strftime_now": _FixedDay()}
        self._values.update({key: value for key, value in kwargs.items() if key not in _RESERVED_NAMES})

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None,
        kwargs: dict[str, Any],
        generation_prompt: bool,
    ) -> str:
        """The text of a conversation. Raises TemplateFailure where the template fails."""
        values = {**self._values, **kwargs} if kwargs else dict(self._values)
        values.update(messages=messages, tools=tools, documents=None, add_generation_prompt=generation_prompt)
        try:
            with _limited():
                text = str(self._template.render(values))
        except (RecipeError, Refused) as error:
            raise self._refused(_line(error), str(error)) from error
        except MemoryError:
            raise
        except Exception as error:  # raise_exception, a type, an attribute: a template may fail in any way
            lines = str(error).strip().splitlines()
            raise TemplateFailure(lines[0][:200] if lines else type(error).__name__) from error
        printed = printed_address(text, self._source, (messages, tools, kwargs, self._values))
        if printed is not None:
            raise self._refused(
                0, f"it prints {printed}, an object with its address, which is other in each run"
            )
        return text

    def _refused(self, line: int, problem: str) -> RecipeError:
        where = f"{self._name}, line {line}" if line else self._name
        return RecipeError(
            f"chat_template: {where}: {problem}. Change the template, or name another with `chat_template`."
        )


class _FixedDay:
    """``strftime_now`` of a fixed day; also where a template prints the function itself."""

    def __call__(self, format: str) -> str:
        return TODAY.strftime(format)

    def __repr__(self) -> str:
        return "<function strftime_now>"


def _line(error: BaseException) -> int:
    """The line of the template in which an error was raised; 0 where it is not known."""
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return next((line for frame, line in reversed(frames) if frame.f_code.co_filename == "<template>"), 0)


@lru_cache(maxsize=1)
def _transformers_templates() -> Any:
    """The template module of transformers, imported when the first template is compiled.

    Where nobody has imported transformers it is loaded alone: the package around it reads 549 folders and the Hub's
    client, a third of a second that no template needs. A version whose module needs more is imported whole.
    """
    if "transformers" not in sys.modules:
        with suppress(Exception):
            return _alone("transformers", "utils", "chat_template_utils")
    logger = logging.getLogger("transformers")
    logger.addFilter(_is_error)  # the warning that PyTorch is missing
    try:
        from transformers.utils import chat_template_utils
    finally:
        logger.removeFilter(_is_error)
    return chat_template_utils


def _alone(package: str, folder: str, module: str) -> Any:
    """A module of a package without what the package imports: in its place stand empty modules, for as long as that takes."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(package)
    place = spec.submodule_search_locations[0]
    try:
        for name, path in ((package, place), (f"{package}.{folder}", f"{place}/{folder}")):
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [path]
        return import_module(f"{package}.{folder}.{module}")
    finally:
        for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
            del sys.modules[name]


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def _limited() -> Iterator[None]:
    """Stop a template that loops. Signals reach only the main thread; in others there is no limit."""
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
    raise Refused(f"one conversation took more than {LIMIT_SECONDS:.0f} seconds of processor time: it loops")
