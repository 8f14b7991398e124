"""Static analysis: can a template's output depend on message text?, or only that they are there.

Most templates only copy content: then the skeleton of a shape is right for every record of it. Some look inside
(``'</think>' in content``, ``content.split(...)``). ``sight`` reads the template's syntax tree once. If everything it does
is known, the result holds what it could react to: strings it looks for, strings it compares with, and whether it
compares texts with each other. A record that holds none of them is rendered as its skeleton says. If a template does
anything else (measuring or indexing strings, unknown filters), every record is compared with its own rendering.

The rule is one-sided: what is not known to be harmless counts as seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import nodes

_HARMLESS_FILTERS = {"tojson", "string", "list", "items", "safe", "default", "d", "map", "join"}
_ATTRIBUTE_FILTERS = {"selectattr", "rejectattr"}
_HARMLESS_TESTS = {
    "string",
    "defined",
    "undefined",
    "none",
    "mapping",
    "iterable",
    "sequence",
    "boolean",
    "number",
}
_HARMLESS_TESTS |= {"true", "false", "even", "odd", "divisibleby", "integer"}
_EQUAL_TESTS = {"equalto", "eq", "==", "ne", "in"}
_LOOKING_METHODS = {
    "startswith",
    "endswith",
    "split",
    "rsplit",
    "replace",
    "find",
    "count",
    "index",
    "removeprefix",
    "removesuffix",
}
_HARMLESS_METHODS = {"items", "keys", "values", "get"}
_STRIPPING_METHODS = {"strip", "lstrip", "rstrip"}
_HARMLESS_CALLS = {"raise_exception", "namespace", "strftime_now", "dict", "caller"}
_KEPT_FIELDS = {
    "tool_calls",
    "id",
    "tool_call_id",
    "role",
    "type",
}  # of records: part of a shape, never a slot
_STRUCTURE = {"messages", "tools", "documents", "add_generation_prompt", "loop"}


@dataclass(frozen=True)
class TextDependence:
    """What a template could react to in a text."""

    sees_all: bool  # anything
    words: tuple[str, ...] = ()  # strings it looks for inside texts
    equals: frozenset[str] = frozenset()  # strings it compares whole texts with
    compares_texts: bool = False  # with one another

    def is_blind_to(self, texts: Sequence[str]) -> bool:
        """Whether the texts hold nothing that the template could react to."""
        if self.sees_all:
            return False
        if self.compares_texts and len(set(texts)) < len(texts):
            return False
        if any(word in text for word in self.words for text in texts):
            return False
        return self.equals.isdisjoint(texts)


class _Seen(Exception):
    """Something that is not known to be harmless."""


@dataclass
class _Reader:
    words: set[str] = field(default_factory=set)
    equals: set[str] = field(default_factory=set)
    compares_texts: bool = False
    structure: set[str] = field(
        default_factory=lambda: set(_STRUCTURE)
    )  # names that hold no texts, only lists of turns
    loose: set[str] = field(default_factory=set)  # names that may hold parts of a text
    macros: set[str] = field(default_factory=set)
    jsons: set[str] = field(default_factory=set)  # names that hold JSON text
    parts: set[int] = field(default_factory=set)  # nodes that take a part of a content that is a list

    def read(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Compare):
            self._compare(node)
        elif isinstance(node, nodes.Test):
            self._test(node)
        elif isinstance(node, nodes.Filter):
            self._filter(node)
        elif isinstance(node, nodes.Call):
            self._call(node)
        elif isinstance(node, nodes.Getitem):
            self._item(node)
        elif (
            isinstance(node, nodes.Mod)
            and isinstance(node.left, nodes.Const)
            and isinstance(node.left.value, str)
        ) or isinstance(
            node, (nodes.FilterBlock, nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
        ):
            raise _Seen
        for child in node.iter_child_nodes():
            self.read(child)

    def _compare(self, node: nodes.Compare) -> None:
        left: nodes.Expr = node.expr
        for operand in node.ops:
            self._pair(left, operand.op, operand.expr)
            left = operand.expr

    def _pair(self, left: nodes.Expr, operator: str, right: nodes.Expr) -> None:
        if operator in ("eq", "ne", "in", "notin") and not any(map(_is_constant, (left, right))):
            self.compares_texts = True  # even turns of lists may be compared: they hold texts
        if self.is_structure(left) or self.is_structure(right):
            self.equals |= {value for side in (left, right) for value in _strings(side)}
            return
        constants = {value for side in (left, right) for value in _strings(side)}
        if operator in ("in", "notin") and not isinstance(right, (nodes.List, nodes.Tuple)):
            if not constants:
                raise _Seen
            self.words |= constants
        elif operator in ("eq", "ne", "in", "notin"):
            self._equal([side for side in (left, right) if not _is_constant(side)], constants)
        else:
            raise _Seen

    def _equal(self, sides: list[nodes.Expr], constants: set[str]) -> None:
        if not all(_is_path(side) for side in sides):
            raise _Seen
        if any(_root(side) in self.loose for side in sides):
            self.words |= constants
        self.equals |= constants

    def _test(self, node: nodes.Test) -> None:
        if node.name in _EQUAL_TESTS:
            self._equal([node.node], {value for argument in node.args for value in _strings(argument)})
        elif node.name not in _HARMLESS_TESTS:
            raise _Seen

    def _filter(self, node: nodes.Filter) -> None:
        if node.name in ("length", "count"):
            if node.node is None or not self.is_structure(node.node):
                raise _Seen
        elif node.name == "trim":
            if node.args or node.kwargs:
                raise _Seen
        elif node.name in ("first", "last"):
            if node.node is None or not self.is_structure(node.node):
                raise _Seen
        elif node.name in _ATTRIBUTE_FILTERS:
            self.equals |= {value for argument in node.args for value in _strings(argument)}
            self.compares_texts = self.compares_texts or not all(map(_is_constant, node.args))
        elif node.name == "replace":
            self._look(node.args)
        elif node.name not in _HARMLESS_FILTERS:
            raise _Seen

    def _call(self, node: nodes.Call) -> None:
        if isinstance(node.node, nodes.Name):
            if node.node.name == "range":
                if not all(self.is_structure(argument) for argument in node.args):
                    raise _Seen
            elif node.node.name not in self.macros | _HARMLESS_CALLS:
                raise _Seen
            return
        method = node.node.attr if isinstance(node.node, nodes.Getattr) else ""
        if method in _LOOKING_METHODS:
            self._look(node.args)
        elif method in _STRIPPING_METHODS:
            if any(_strings(argument) != {"\n"} for argument in node.args):
                raise _Seen
        elif method not in _HARMLESS_METHODS and type(node.node).__name__ != "ExtensionAttribute":
            raise _Seen

    def _look(self, arguments: Sequence[nodes.Expr]) -> None:
        """The first argument is looked for in a text."""
        if (
            not arguments
            or not isinstance(arguments[0], nodes.Const)
            or not isinstance(arguments[0].value, str)
        ):
            raise _Seen
        self.words.add(arguments[0].value)

    def _item(self, node: nodes.Getitem) -> None:
        base = node.node
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            self.parts.add(id(base))  # content[0]['text']: a list of parts; of a text it gives nothing
            return
        is_split = isinstance(base, nodes.Call) and getattr(base.node, "attr", "") in ("split", "rsplit")
        if is_split or self.is_structure(base) or (self.is_json(base) and _trims_ends(node.arg)):
            return
        if id(node) in self.parts:
            return
        raise _Seen

    def is_structure(self, node: nodes.Node) -> bool:
        """Whether a value is decided by a conversation's shape: numbers, lists of turns, ids, roles."""
        if isinstance(node, nodes.Const):
            return not isinstance(node.value, str)
        if isinstance(node, nodes.Name):
            return node.name in self.structure
        if isinstance(node, (nodes.Getattr, nodes.Getitem)):
            return self._is_structured_path(node)
        if isinstance(node, nodes.Filter) and node.node is not None:
            kept = {"length", "count", "list", *_ATTRIBUTE_FILTERS, "first", "last", "int"}
            return node.name in kept and self.is_structure(node.node)
        if isinstance(
            node, (nodes.BinExpr, nodes.UnaryExpr, nodes.CondExpr, nodes.List, nodes.Tuple, nodes.Test)
        ):
            children = list(node.iter_child_nodes())
            return isinstance(node, nodes.Test) or all(self.is_structure(child) for child in children)
        return isinstance(node, nodes.Compare)

    def _is_structured_path(self, node: nodes.Getattr | nodes.Getitem) -> bool:
        name = _last_field(node)
        if name in _KEPT_FIELDS:
            return True
        if name is None:  # an index or a slice
            return self.is_structure(node.node)
        if isinstance(node.node, nodes.Name):
            return (
                node.node.name == "loop" and name not in ("previtem", "nextitem")
            ) or f"{node.node.name}.{name}" in self.structure
        return False

    def is_json(self, node: nodes.Node) -> bool:
        """Whether a value is JSON text."""
        if isinstance(node, nodes.Name):
            return node.name in self.jsons
        return isinstance(node, nodes.Filter) and node.name == "tojson"

    def learn_names(self, tree: nodes.Template) -> None:
        """Which names hold structure, JSON or parts of texts: by all that is ever assigned to them."""
        self.macros = {macro.name for macro in tree.find_all(nodes.Macro)}
        values: dict[str, list[nodes.Node]] = {}
        for name, value in _assignments(tree):
            values.setdefault(name, []).append(value)
        for macro in tree.find_all(nodes.Macro):
            values = {
                name: given for name, given in values.items() if name not in {one.name for one in macro.args}
            }
        self.structure |= (
            values.keys()
        )  # names depend on one another: assume the best, strike out until it holds
        self.jsons |= values.keys()
        for _ in range(len(values)):
            self.structure -= {
                name for name, given in values.items() if not all(map(self.is_structure, given))
            }
            self.jsons -= {name for name, given in values.items() if not all(map(self.is_json, given))}
        for loop in tree.find_all(nodes.For):
            if not self.is_structure(loop.iter):
                self.loose |= {
                    name.name
                    for name in [loop.target, *loop.target.find_all(nodes.Name)]
                    if isinstance(name, nodes.Name)
                }


def text_dependence(tree: Any) -> TextDependence:
    """What a chat template, given as its syntax tree, can see in a text."""
    reader = _Reader()
    try:
        reader.learn_names(tree)
        reader.read(tree)
    except _Seen:
        return TextDependence(sees_all=True)
    words = tuple(sorted(word for word in reader.words if word))
    return TextDependence(False, words, frozenset(reader.equals), reader.compares_texts)


def _assignments(tree: nodes.Template) -> Iterator[tuple[str, nodes.Node]]:
    for node in tree.find_all(nodes.Assign):
        targets = node.target.items if isinstance(node.target, nodes.Tuple) else [node.target]
        values = node.node.items if isinstance(node.node, nodes.Tuple) else [node.node] * len(targets)
        for target, value in zip(targets, values, strict=True):
            if isinstance(target, nodes.NSRef):
                yield f"{target.name}.{target.attr}", value
            elif isinstance(target, nodes.Name):
                yield target.name, value
                if isinstance(value, nodes.Call) and getattr(value.node, "name", "") == "namespace":
                    for pair in value.kwargs:
                        yield f"{target.name}.{pair.key}", pair.value
    for loop in tree.find_all(nodes.For):
        for name in [loop.target, *loop.target.find_all(nodes.Name)]:
            if isinstance(name, nodes.Name):
                yield name.name, nodes.Call(loop.iter, [], [], None, None)  # an item: never structure itself
    for block in tree.find_all(nodes.AssignBlock):
        if isinstance(block.target, nodes.Name):
            yield block.target.name, nodes.Call(block.target, [], [], None, None)


def _strings(node: nodes.Node) -> set[str]:
    if isinstance(node, nodes.Const):
        return {node.value} if isinstance(node.value, str) else set()
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return {value for item in node.items for value in _strings(item)}
    return set()


def _is_constant(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) or (
        isinstance(node, (nodes.List, nodes.Tuple)) and all(map(_is_constant, node.items))
    )


def _is_path(node: nodes.Node) -> bool:
    """A value as it stands in the record: ``message.content``, ``messages[0]['role']``, not ``content[0]``."""
    if isinstance(node, nodes.Name):
        return True
    if isinstance(node, nodes.Filter) and node.name == "trim":
        return node.node is not None and _is_path(node.node)
    if isinstance(node, nodes.Getitem) and not (
        isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)
    ):
        return isinstance(
            node.node, nodes.Name
        )  # users[-1]; of a name that holds a text it is refused elsewhere
    return isinstance(node, (nodes.Getattr, nodes.Getitem))


def _root(node: nodes.Node) -> str:
    while not isinstance(node, nodes.Name):
        inner = getattr(node, "node", None)
        if inner is None:
            return ""
        node = inner
    return str(node.name)


def _last_field(node: nodes.Getattr | nodes.Getitem) -> str | None:
    if isinstance(node, nodes.Getattr):
        return str(node.attr)
    if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        return node.arg.value
    return None


def _trims_ends(node: nodes.Node) -> bool:
    """Whether a slice takes at most one character from each end."""
    if not isinstance(node, nodes.Slice) or node.step is not None:
        return False
    start = 0 if node.start is None else getattr(node.start, "value", None)
    stop = node.stop
    ends_one = stop is None or (isinstance(stop, nodes.Neg) and getattr(stop.node, "value", 0) == 1)
    return start in (0, 1) and ends_one
