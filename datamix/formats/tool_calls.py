"""Tool definitions and tool calls in one form.

Definitions become a JSON list of ``{"type": "function", "function": {...}}`` (what chat templates document); calls a
JSON list of ``{"id"?, "type": "function", "function": {"name", "arguments": object}}``. Arguments that come as JSON
text are parsed when they give an object and stay text when not.
"""

from __future__ import annotations

from typing import Any

from datamix.formats.drafts import ForeignRow, Unfit, json_text, named, parsed


def tools_text(row: ForeignRow, field: str = "tools") -> str | None:
    """``'[{"name": "f", ...}]'`` -> a JSON list of wrapped definitions; None where there are none. Raises Unfit."""
    value = row.get(field)
    if not value:
        return None
    if isinstance(value, str):
        if not value.strip():
            return None
        value = parsed(value, field, "tools")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise Unfit("tools", field, f"is {named(value)}, not a list of tool definitions")
    definitions = []
    for index, tool in enumerate(value):
        place = f"{field}[{index}]"
        if isinstance(tool, str):
            tool = parsed(tool, place, "tools")
        if not isinstance(tool, dict):
            raise Unfit("tools", place, f"is {named(tool)}, not a tool definition")
        bare = "type" not in tool and isinstance(tool.get("name"), str)
        definitions.append({"type": "function", "function": tool} if bare else tool)
    return json_text(definitions) if definitions else None


def bare_tools(tools: list[Any]) -> list[Any]:
    """Definitions without their wrapping, as sharegpt files write them."""
    return [t["function"] if set(t) == {"type", "function"} and "name" in t["function"] else t for t in tools]


def calls_text(value: Any, field: str) -> str:
    """One call or a list of calls, as objects or JSON text -> the JSON list. Raises Unfit."""
    if isinstance(value, str):
        value = parsed(value, field, "tool_call")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise Unfit("tool_call", field, f"is {named(value)}, not a call with a name and arguments")
    return json_text([_call(call, f"{field}[{i}]") for i, call in enumerate(value)])


def _call(call: Any, field: str) -> dict[str, Any]:
    if isinstance(call, str):
        call = parsed(call, field, "tool_call")
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        function = call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Unfit("tool_call", field, "has no function name")
    identity = call.get("id")
    head = {"id": identity} if isinstance(identity, str) else {}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            value = parsed(arguments, field, "tool_call")
        except Unfit:
            value = None
        arguments = value if isinstance(value, dict) else arguments
    elif arguments is None:
        arguments = {}
    elif not isinstance(arguments, dict):
        raise Unfit("tool_call", f"{field}.arguments", f"is {named(arguments)}, not an object")
    return {**head, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
