"""Tool definitions and tool calls in one form.

Definitions become a JSON list of ``{"type": "function", "function": {...}}`` (what chat templates document); calls a
JSON list of ``{"id"?, "type": "function", "function": {"name", "arguments": object}}``. OpenAI, Anthropic, Gemini, Llama
and LangChain name the parts differently. Arguments come as an object or as its JSON text, encoded once or more often;
nothing, "" and null are no arguments. What cannot be read so is a reject: it would be trained as another call.
"""

from __future__ import annotations

from typing import Any

from datamix.formats.drafts import ForeignRow, Unfit, json_text, named, parsed

ARGUMENTS = ("arguments", "parameters", "args", "input", "params")
_IDS = ("id", "call_id", "tool_call_id", "tool_use_id")
_NAMES = ("name", "tool_name", "function_name")
_SCHEMAS = ("input_schema", "inputSchema")  # of definitions: Anthropic, MCP
_DECLARATIONS = ("functionDeclarations", "function_declarations")  # Gemini
# of calls, beside their arguments: nothing that an answer would have to hold
_INERT = {*_IDS, *_NAMES, "function", "functionCall", "function_call", "type", "index", "status", "caller"}
_MAX_ENCODINGS = 4


def tools_text(row: ForeignRow, field: str | None = None) -> str | None:
    """``{"tools": '[{"name": "f", ...}]'}`` -> a JSON list of wrapped definitions; None where there are none.

    ``tools`` or OpenAI's older ``functions``. Raises Unfit.
    """
    read = {}
    for name in ("tools", "functions"):
        place = f"{field}.{name}" if field else name
        if row.get(name) and (definitions := _definitions(row[name], place)):
            read[place] = json_text(definitions)
    if len(set(read.values())) > 1:
        raise Unfit("tools", " and ".join(read), "differ, where one list of definitions is expected")
    return next(iter(read.values()), None)


def _definitions(value: Any, field: str) -> list[Any]:
    values = _values(value, field, "tools")
    if not isinstance(values, list):
        raise Unfit("tools", field, f"is {named(values)}, not a list of tool definitions")
    definitions: list[Any] = []
    for index, tool in enumerate(values):
        place = f"{field}[{index}]"
        tool = parsed(tool, place, "tools") if isinstance(tool, str) else tool
        if not isinstance(tool, dict):
            raise Unfit("tools", place, f"is {named(tool)}, not a tool definition")
        declared = next((key for key in _DECLARATIONS if tool.get(key)), None)
        schema = next((key for key in _SCHEMAS if key in tool), None)
        if declared is not None:
            definitions += _definitions(tool[declared], f"{place}.{declared}")
        elif isinstance(tool.get("name"), str) and (schema or tool.get("type", "function") == "function"):
            names = {schema: "parameters"} if schema else {}
            function = {names.get(key, key): part for key, part in tool.items() if key != "type"}
            definitions.append({"type": "function", "function": function})
        else:
            definitions.append(tool)
    return definitions


def bare_tools(tools: list[Any]) -> list[Any]:
    """Definitions without their wrapping, as sharegpt files write them."""
    return [t["function"] if set(t) == {"type", "function"} and "name" in t["function"] else t for t in tools]


def calls_text(value: Any, field: str) -> str | None:
    """One call or a list of calls, as objects or JSON text -> the JSON list; None where there are none. Raises Unfit."""
    values = _values(value, field, "tool_call")
    if not isinstance(values, list):
        raise Unfit("tool_call", field, f"is {named(values)}, not a call with a name and arguments")
    calls = [_call(call, f"{field}[{i}]") for i, call in enumerate(values)]
    return json_text(calls) if calls else None


def _values(value: Any, field: str, reason: str) -> Any:
    """Several objects from a list, one object, or their JSON text (also one a line); None and blank text are no objects."""
    if isinstance(value, str):
        lines = [line for line in value.split("\n") if line.strip()]
        try:
            value = parsed(value, field, reason) if lines else None
        except Unfit:
            if len(lines) == 1 or not all(line.lstrip().startswith("{") for line in lines):
                raise
            value = [parsed(line, field, reason) for line in lines]
    if value is None:
        return []
    return [value] if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value


def _call(call: Any, field: str) -> dict[str, Any]:
    call = parsed(call, field, "tool_call") if isinstance(call, str) else call
    parts = [call] if isinstance(call, dict) else []
    for key in ("function", "functionCall", "function_call"):
        if parts and isinstance(call.get(key), dict):
            parts.insert(0, call[key])
    name = next((part[key] for part in parts for key in _NAMES if isinstance(part.get(key), str)), None)
    if name is None and parts and isinstance(call.get("function"), str):
        name = call["function"]
    if not name:
        raise Unfit("tool_call", field, "has no function name")
    read = {
        key: _arguments(part[key], f"{field}.{key}")
        for part in parts
        for key in ARGUMENTS
        if part.get(key) is not None
    }
    unread = [key for part in parts for key, value in part.items() if key not in _INERT and value]
    if not read and unread:
        raise Unfit("tool_call", field, f"has no arguments, and {', '.join(unread)} cannot be read as such")
    arguments = next(iter(read.values()), {})
    if any(other != arguments for other in read.values()):
        raise Unfit("tool_call", field, f"has different {' and '.join(read)}")
    identity = next((call[key] for key in _IDS if call.get(key) not in (None, "")), None)
    head = {} if identity is None else {"id": str(identity)}
    return {**head, "type": "function", "function": {"name": name, "arguments": arguments}}


def _arguments(value: Any, field: str) -> dict[str, Any]:
    """``'{"x": 1}'`` -> ``{"x": 1}``. Raises Unfit: it is no object, however often it is decoded."""
    for _ in range(_MAX_ENCODINGS):
        if isinstance(value, dict):
            return value
        if value is None or value == [] or (isinstance(value, str) and not value.strip()):
            return {}
        if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
            return dict(value)  # a map column of Arrow
        if not isinstance(value, str):
            break
        value = parsed(value, field, "tool_call")
    raise Unfit("tool_call", field, f"is {named(value)}, not an object")
