"""YAML as a recipe needs it: safe, strict, and every value with its line.

YAML 1.2 scalars only (``no`` is text, ``010`` is ten, ``1e3`` a number), no tags, no aliases, no duplicate keys, at most
1 MB and 32 levels deep. Nothing in a file can run code or grow in memory.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from datamix.core.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_DEPTH = 32

Key = tuple[str | int, ...]

_SCALARS: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(r"(?:|~|null|Null|NULL)\Z"), lambda text: None),
    (re.compile(r"(?:true|True|TRUE)\Z"), lambda text: True),
    (re.compile(r"(?:false|False|FALSE)\Z"), lambda text: False),
    (re.compile(r"[-+]?[0-9]+\Z"), int),
    (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"), float),
]


@dataclass(frozen=True)
class YamlDocument:
    """Plain values, and the 1-based line of each key path."""

    value: Any
    lines: dict[Key, int]

    def line(self, key: Key) -> int | None:
        """The line of ``key``, or of the nearest parent that is in the file."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key)


def load(text: str, name: str) -> YamlDocument:
    """Parse one YAML document. Raises RecipeError with the line of the first thing that is not plain, strict YAML."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise RecipeError(f"{name} is larger than {MAX_BYTES:,} bytes. A recipe is a page, not data.")
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise RecipeError(
                    f"{_at(name, event)}: aliases (*{event.anchor}) are not allowed. Write the value out."
                )
            if (tag := getattr(event, "tag", None)) and not isinstance(event, yaml.DocumentStartEvent):
                raise RecipeError(f"{_at(name, event)}: tags ({tag}) are not allowed. Write a plain value.")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}, line {mark.line + 1}, column {mark.column + 1}" if mark else name
        if mark and "\t" in [*text.split("\n"), ""][mark.line][: mark.column + 1]:
            raise RecipeError(
                f"{where}: a tab. YAML is indented by spaces: replace each tab by spaces, for example two."
            ) from None
        raise RecipeError(f"{where}: not valid YAML: {error.problem or error.context}.") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{name}: not valid YAML: {error}.") from None
    lines: dict[Key, int] = {(): 1}
    value = _value(node, (), lines, name) if node is not None else None
    return YamlDocument(value, lines)


def scalar(text: str) -> Any:
    """The value of an unquoted scalar: ``"3"`` -> 3, ``"no"`` -> "no"."""
    for pattern, make in _SCALARS:
        if pattern.match(text):
            return make(text)
    return text


def _value(node: yaml.Node, key: Key, lines: dict[Key, int], name: str) -> Any:
    if len(key) > MAX_DEPTH:
        raise RecipeError(f"{_at(name, node)}: nested deeper than {MAX_DEPTH} levels.")
    lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        try:
            return scalar(node.value) if node.style is None else node.value
        except ValueError:  # Python reads no more than 4,300 digits
            raise RecipeError(
                f"{_at(name, node)}: {'.'.join(map(str, key))}: is a number of {len(node.value):,} digits; write a shorter one."
            ) from None
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*key, i), lines, name) for i, child in enumerate(node.value)]
    result: dict[str, Any] = {}
    for key_node, child in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise RecipeError(f"{_at(name, key_node)}: a key must be a plain name.")
        word = key_node.value
        if word in result:
            raise RecipeError(f"{_at(name, key_node)}: the key {word!r} occurs twice. Keep one.")
        lines[(*key, word)] = key_node.start_mark.line + 1
        result[word] = _value(child, (*key, word), lines, name)
    return result


def _at(name: str, thing: Any) -> str:
    return f"{name}, line {thing.start_mark.line + 1}"


def set_value(value: dict[str, Any], text: str) -> None:
    """Apply ``mix.size=2M`` to a plain recipe in place."""
    path, equals, word = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"--set {text}: should be key.path=value, such as --set mix.size=2M.")
    parsed = load(word, "--set").value
    *parents, last = path.strip().split(".")
    parent: Any = value
    for depth, part in enumerate([*parents, last]):
        if isinstance(parent, list):
            if not part.isdigit() or int(part) >= len(parent):
                raise RecipeError(
                    f"--set {text}: {part!r} is no entry of a list of {len(parent)}; its entries are counted from 0."
                )
        elif not isinstance(parent, dict):
            raise RecipeError(f"--set {text}: nothing can be set at {part!r}, which is below a plain value.")
        if depth == len(parents):
            break
        if isinstance(parent, dict) and parent.get(part) is None:
            parent[part] = {}
        parent = parent[int(part)] if isinstance(parent, list) else parent[part]
    parent[int(last) if isinstance(parent, list) else last] = parsed
