"""What a chat template may not do: take memory or time without bound, or print what another run prints otherwise.

The sandbox of Jinja stops neither ``9 ** (9 ** 9)``, which runs for hours inside one instruction, nor ``|random``. Three layers:
``examine`` reads the syntax tree; what is chance by its name is refused there, with its line. Nearly all published templates hold
only operations whose cost is linear in the conversation: these run as they are. A template with any other operation runs
guarded (``guard``: operands and arguments are checked before each such operation), and before a build ``template_probe`` renders examples
with it in two processes of limited memory and time and unlike hash seeds, whose texts must be equal. Cost: 20 ms to read a
template; two seconds for one that needs the probe.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

from datamix.core.errors import RecipeError

if TYPE_CHECKING:
    from jinja2 import Environment, nodes

_MAX_TEXT = 1 << 26  # characters, or items of a list, that one operation may make
_MAX_WIDTH, _MAX_BITS, _MAX_RANGE, _MAX_ROUNDS = 1000, 1 << 12, 100_000, 10_000_000
_MAX_DEPTH = 3  # of macros that call macros
_GENERATORS = {"map", "select", "selectattr", "reject", "rejectattr", "unique", "items", "batch", "slice"}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LINEAR_FILTERS = _words(
    "tojson string list items safe default d join trim length count selectattr rejectattr select reject map first last upper "
    "lower int float title capitalize e escape dictsort reverse sort unique abs round replace attr"
)
_LINEAR_METHODS = _words(
    "items keys values get strip lstrip rstrip split rsplit startswith endswith removeprefix removesuffix upper lower title "
    "capitalize find rfind count index replace isdigit isalpha isspace isupper islower splitlines partition rpartition"
)
_PADDING = {
    "center",
    "indent",
    "tojson",
    "wordwrap",
    "ljust",
    "rjust",
    "zfill",
    "expandtabs",
    "batch",
    "slice",
}
_WIDTH = re.compile(r"%[^a-zA-Z%]*?(\*|\d{4,})|\{[^{}]*:[^{}]*?(\{|\d{4,})")


class Refused(Exception):
    """An operation of a template that is not done; the message says why."""


def examine(tree: nodes.Template) -> tuple[list[tuple[int, str]], bool]:
    """What a template does by chance or beyond any bound, each with its line; and whether it needs the guard."""
    from jinja2 import nodes

    problems: list[tuple[int, str]] = []
    for filter_ in tree.find_all(nodes.Filter):
        if filter_.name == "random":
            problems.append((filter_.lineno, "the filter `random` picks by chance"))
    for name in tree.find_all(nodes.Name):
        if name.name == "lipsum" and name.ctx == "load":
            problems.append((name.lineno, "`lipsum` writes text by chance"))
    for output in tree.find_all(nodes.Output):
        for value in output.nodes:
            if isinstance(value, nodes.Filter) and value.name in _GENERATORS:
                text = f"`|{value.name}` is printed as an object with its address; add `|list` or `|join`"
                problems.append((value.lineno, text))
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == "range":
            longest = max((_number(argument) for argument in call.args), default=0)
            if longest > _MAX_RANGE:
                problems.append((call.lineno, f"a range of {longest:,} is longer than {_MAX_RANGE:,}"))
    for loop in tree.find_all(nodes.For):
        for inner in (n for part in loop.body for n in _all(part) if isinstance(n, nodes.For)):
            rounds = _rounds(loop) * _rounds(inner)
            if rounds > _MAX_ROUNDS:
                problems.append(
                    (loop.lineno, f"loops of {rounds:,} rounds; at most {_MAX_ROUNDS:,} are done")
                )
    return sorted(problems), not all(_is_linear(node) for node in _all(tree)) or _multiplies(tree)


def _all(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _all(child)


def _number(node: Any) -> int:
    value = getattr(node, "value", 0)
    return value if isinstance(value, int) else 0


def _rounds(loop: nodes.For) -> int:
    """Of a loop over a range of constants; else 1."""
    is_range = getattr(getattr(loop.iter, "node", None), "name", "") == "range"
    return (
        max((_number(argument) for argument in getattr(loop.iter, "args", ())), default=1) if is_range else 1
    )


def _is_linear(node: nodes.Node) -> bool:
    """Whether one operation takes time and memory linear in its operands, whatever they are."""
    from jinja2 import nodes

    def constant(value: Any) -> bool:
        return isinstance(value, nodes.Const)

    if isinstance(node, nodes.Pow | nodes.FilterBlock | nodes.Include | nodes.Import | nodes.FromImport):
        return False
    if isinstance(node, nodes.Mul):
        return all(constant(side) and abs(_number(side)) <= _MAX_WIDTH for side in (node.left, node.right))
    if isinstance(node, nodes.Mod):  # of texts it formats them
        return constant(node.right) and isinstance(node.left, nodes.Getattr | nodes.Const) and (
            getattr(node.left, "value", 0) == _number(node.left) or getattr(getattr(node.left, "node", None), "name", "") == "loop"
        )  # fmt: skip
    if isinstance(node, nodes.Filter):
        widths = [_number(value) for value in (*node.args, *(pair.value for pair in node.kwargs))]
        if node.name in ("map", "select", "reject") and node.args:
            return constant(node.args[0]) and node.args[0].value in _LINEAR_FILTERS | _TESTS  # type: ignore[attr-defined]
        needs = node.args if node.name in ("replace", "join") else []
        return node.name in _LINEAR_FILTERS and max(widths, default=0) <= 8 and all(map(constant, needs))
    if isinstance(node, nodes.Call):
        if isinstance(node.node, nodes.Name):
            return True  # a macro: see `_multiplies`; anything else is undefined or harmless
        method = getattr(node.node, "attr", "")
        if method == "join":
            return isinstance(node.node, nodes.Getattr) and constant(node.node.node)
        if method in ("replace", "index"):
            return all(map(constant, node.args))
        return method in _LINEAR_METHODS or type(node.node).__name__ == "ExtensionAttribute"
    return True


_TESTS = {"defined", "undefined", "none", "string", "mapping", "equalto", "eq", "ne", "in", "true", "false"}


def _multiplies(tree: nodes.Template) -> bool:
    """Whether texts may grow faster than the conversation: by doubling what was assigned, by macros inside macros, or by
    loops over one list inside each other."""
    from jinja2 import nodes

    assigned = {
        str(target.name)  # type: ignore[attr-defined]
        for kind in (nodes.Name, nodes.NSRef)
        for target in tree.find_all(kind)
        if getattr(target, "ctx", "store") == "store"
    }
    for block in tree.find_all((nodes.Assign, nodes.AssignBlock)):
        value = block.node if isinstance(block, nodes.Assign) else block
        names = [n.name for n in value.find_all(nodes.Name) if n.ctx == "load" and n.name in assigned]
        joins = (
            isinstance(block, nodes.AssignBlock)
            or value.find(nodes.Add)
            or value.find(nodes.Concat)
            or isinstance(value, nodes.Add | nodes.Concat)
        )
        if joins and max(Counter(names).values(), default=0) > 1:
            return True
    views = [
        call for call in tree.find_all(nodes.Call) if getattr(call.node, "attr", "") in ("keys", "items")
    ]
    iterated = {id(loop.iter) for loop in tree.find_all(nodes.For)}
    if tree.find(nodes.Sub) and any(id(call) not in iterated for call in views):
        return True  # the difference of two views is a set
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    if any(
        _calls(argument, macros)
        for call in tree.find_all(nodes.Call)
        if _calls(call.node, macros)
        for argument in call.args
    ):
        return True
    if any(_depth(name, macros, ()) > _MAX_DEPTH for name in macros):
        return True
    for loop in tree.find_all(nodes.For):
        outer = getattr(loop.iter, "name", None)
        if loop.recursive or any(
            outer and isinstance(n, nodes.For) and getattr(n.iter, "name", None) == outer
            for part in loop.body
            for n in _all(part)
        ):
            return True
    return False


def _calls(node: nodes.Node, macros: dict[str, nodes.Macro]) -> set[str]:
    from jinja2 import nodes

    names = {n.name for n in node.find_all(nodes.Name)} | (
        {node.name} if isinstance(node, nodes.Name) else set()
    )
    return names & macros.keys()


def _depth(name: str, macros: dict[str, nodes.Macro], above: tuple[str, ...]) -> int:
    """How deep macros call each other below one; more than any bound where they recurse."""
    if name in above or len(above) > _MAX_DEPTH:
        return _MAX_DEPTH + 1
    return 1 + max(
        (_depth(inner, macros, (*above, name)) for inner in _calls(macros[name], macros)), default=0
    )


def guard(environment: Environment) -> None:
    """Check operands and arguments before each operation that could take memory or time without bound, or give chance.

    Refused is raised where one would. Operations between constants are left to the rendering, where they are checked.
    """
    from jinja2.compiler import CodeGenerator
    from jinja2.runtime import str_join

    class Generator(CodeGenerator):
        def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
            self.write("environment.join_texts((")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    def join_texts(parts: Sequence[Any]) -> str:
        _allow(sum(len(part) for part in parts if isinstance(part, str)))
        return str_join(parts)

    def call_binop(context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        result = environment.binop_table[operator](left, right)  # type: ignore[attr-defined]
        if isinstance(result, set):
            raise Refused("the difference of keys or items is a set, whose order is chance")
        return result

    wrapped = environment.wrap_str_format  # type: ignore[attr-defined]

    def wrap_str_format(method: Any) -> Any:
        run = wrapped(method)

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_method("format", method.__self__, ())
            return str(run(*args, **kwargs))

        return run if run is None else checked

    called = environment.call  # type: ignore[attr-defined]

    def call(context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str):
            args = _check_method(str(function.__name__), owner, args)
        return called(context, function, *args, **kwargs)

    environment.code_generator_class = Generator
    environment.wrap_str_format = wrap_str_format  # type: ignore[attr-defined]
    environment.intercepted_binops = frozenset(environment.binop_table)  # type: ignore[attr-defined]
    environment.call_binop, environment.call, environment.join_texts = call_binop, call, join_texts  # type: ignore[attr-defined]
    environment.filters |= {name: _checked(name, filter_) for name, filter_ in environment.filters.items()}


def _checked(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(filter_)
    def run(*args: Any, **kwargs: Any) -> Any:
        if name == "random":
            raise Refused("the filter `random` picks by chance")
        values = [
            value for value in args if type(value).__name__ not in ("EvalContext", "Context", "Environment")
        ]
        if name != "join" or isinstance(values[0], str):
            _check_method(
                name, values[0] if isinstance(values[0], str) else "", (*values[1:], *kwargs.values())
            )
        else:
            texts = [str(value) for value in values[0]]
            _allow(sum(map(len, texts)) + len(texts) * len(str(values[1] if len(values) > 1 else "")))
            args = tuple(texts if value is values[0] else value for value in args) if not kwargs else args
        return filter_(*args, **kwargs)

    return run


def _check_method(name: str, text: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Raise Refused where a method or filter would make too long a text; the arguments, a generator among them as a list."""
    numbers = [
        int(a) for a in args if isinstance(a, int) or (isinstance(a, str) and a.isdecimal() and len(a) < 99)
    ]
    if name in _PADDING and max(numbers, default=0) > _MAX_WIDTH:
        raise Refused(f"`{name}` to a width of {max(numbers):,}; at most {_MAX_WIDTH:,} is taken")
    if name in ("format", "format_map") and (found := _WIDTH.search(text)):
        raise Refused(f"the format {found[0][:40]!r} has a width that is too large or comes from a value")
    if name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        _allow(len(text) + text.count(args[0]) * len(args[1]))
    if name == "translate":
        raise Refused("`translate` is not done")
    if name == "join" and args and not isinstance(args[0], str):
        texts = list(args[0])
        _allow(sum(len(t) for t in texts if isinstance(t, str)) + len(texts) * len(text))
        return (texts, *args[1:])
    return args


def _check_operands(operator: str, left: Any, right: Any) -> None:
    sized = (str, bytes, list, tuple)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * abs(right) > _MAX_BITS:
            raise Refused(f"a power of {_MAX_BITS:,} bits or more")
    elif operator == "*" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_BITS:
            raise Refused(f"a product of {_MAX_BITS:,} bits or more")
    elif operator == "*" and isinstance(left, sized) | isinstance(right, sized):
        text, times = (left, right) if isinstance(left, sized) else (right, left)
        _allow(len(text) * max(0, int(times)) if isinstance(times, int) else 0)
    elif operator == "+" and isinstance(left, sized) and isinstance(right, sized):
        _allow(len(left) + len(right))
    elif operator == "%" and isinstance(left, str) and (found := _WIDTH.search(left)):
        raise Refused(f"the format {found[0][:40]!r} has a width that is too large or comes from a value")


def _allow(size: int) -> None:
    if size > _MAX_TEXT:
        raise Refused(f"a text or list of {size:,}; at most {_MAX_TEXT:,} is made")


_ADDRESS = re.compile(r"[\w.]+(?: object)? at 0x[0-9a-fA-F]{6,}>")


def printed_address(text: str, source: str, values: Sequence[Any]) -> str | None:
    """The object with its address in memory that a rendering prints: one that neither the template nor its values hold."""
    if " at 0x" not in text:
        return None
    known = source + "\n".join(_texts(values))
    return next((found for found in _ADDRESS.findall(text) if found not in known), None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from (*_texts(key), *_texts(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def parse(source: str, name: str, environment: Environment | None = None) -> nodes.Template:
    """The syntax tree of a template. Raises RecipeError with the line of a mistake."""
    from jinja2 import Environment, TemplateSyntaxError, nodes
    from jinja2.ext import Extension, loopcontrols

    class Generation(Extension):
        """``{% generation %}`` of transformers marks what a model writes; it prints its body."""

        tags: set[str] = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_", []), [], [], body).set_lineno(line)

    environment = environment or Environment(extensions=[Generation, loopcontrols])
    try:
        return environment.parse(source)
    except TemplateSyntaxError as error:
        raise RecipeError(
            f"chat_template: {name}, line {error.lineno}: it is not valid Jinja: {str(error.message).rstrip('.')}. "
            "Fix the template, or name another with `chat_template`."
        ) from error
    except RecursionError:
        text = "its expressions are nested too deeply to be read"
        raise RecipeError(f"chat_template: {name}: {text}. Name another with `chat_template`.") from None
