"""Agents' traces to conversations: OpenHands' events, SWE-agent's history, smolagents' steps.

What the model wrote (text, calls) is an assistant turn; what a tool or the environment answered is a tool or user turn,
which is never trained. Bookkeeping events (state changes, recalled context, cost) are no part of the conversation.
Sources: OpenHands ``events/serialization`` (before 1.0) and ``sdk/event`` (since), SWE-agent ``trajectories`` documentation,
smolagents ``memory.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datamix.formats.drafts import Draft, ForeignRow, TurnNames, Unfit, listed, named, present
from datamix.formats.instruct import with_extras, with_system
from datamix.formats.turns import parts_text, read_turns

_EVENTS = ("history", "trajectory", "events")
_BOOKKEEPING = {  # of the arguments of an OpenHands action: what the runtime adds
    *(
        "thought",
        "is_confirmed",
        "confirmation_state",
        "hidden",
        "keep_prompt",
        "blocking",
        "is_static",
        "cwd",
    ),
    *(
        "security_risk",
        "is_input",
        "include_extra",
        "translated_ipython_code",
        "task_completed",
        "final_thought",
    ),
}
_NOT_SPOKEN = ("null", "change_agent_state", "agent_state_changed", "recall", "pause", "resume", "stop")


def openhands(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """OpenHands: ``history`` (or trajectory, events) of actions and observations, of either generation."""
    field = present(row, _EVENTS)
    turns: list[Any] = []
    extras: ForeignRow = {}
    answered: set[str] = set()  # model responses with several calls: one turn, though an event for each
    for index, event in enumerate(listed(row[field], field)):
        if not isinstance(event, dict):
            raise Unfit("not_object", f"{field}[{index}]", f"is {named(event)}, not an event")
        if "kind" in event:
            turns += _sdk_event(event, extras, f"{field}[{index}]")
        elif event.get("action", event.get("observation")) in _NOT_SPOKEN:
            continue
        elif "observation" in event:
            metadata = _object(event, "tool_call_metadata")
            identity = metadata.get("tool_call_id", event.get("cause"))
            tool = {
                "role": "tool",
                "name": metadata.get("function_name"),
                "content": event.get("content") or "",
            }
            turns.append({**tool, "tool_call_id": None if identity is None else str(identity)})
        else:
            turns += _action(event, extras, answered)
    return [with_extras(Draft(with_system(row, read_turns(turns, field, names))), {**row, **extras})]


def _action(event: ForeignRow, extras: ForeignRow, answered: set[str]) -> list[Any]:
    arguments = _object(event, "args")
    action, content = event.get("action"), arguments.get("content", event.get("message"))
    if action == "system":
        extras["tools"] = arguments.get("tools")
        return [{"role": "system", "content": content}]
    if action == "message":
        return [{"role": "user" if event.get("source") == "user" else "assistant", "content": content}]
    metadata = _object(event, "tool_call_metadata")
    response = _object(metadata, "model_response")
    choices = response.get("choices")
    if (
        isinstance(choices, list)
        and choices
        and isinstance(choices[0], dict)
        and _object(choices[0], "message")
    ):
        known = str(response.get("id", response))
        repeated = known in answered
        answered.add(known)
        return [] if repeated else [{"role": "assistant", **choices[0]["message"]}]
    call = {"name": action, "arguments": {k: v for k, v in arguments.items() if k not in _BOOKKEEPING}}
    identity = metadata.get("tool_call_id", event.get("id"))
    return [
        {
            "role": "assistant",
            "content": arguments.get("thought") or None,
            "tool_calls": [{"id": identity, **call}],
        }
    ]


def _object(row: ForeignRow, field: str) -> ForeignRow:
    value = row.get(field)
    return value if isinstance(value, dict) else {}


def _sdk_event(event: ForeignRow, extras: ForeignRow, field: str) -> list[Any]:
    """Events since OpenHands 1.0: their ``kind`` names them."""
    kind = event["kind"]
    content: Any
    if kind == "SystemPromptEvent":
        extras["tools"] = event.get("tools")
        return [{"role": "system", "content": _text(event.get("system_prompt"), field)}]
    if kind == "MessageEvent":
        message = event.get("llm_message")
        return [message if isinstance(message, dict) else {"role": event.get("source"), "content": message}]
    if kind == "ActionEvent":
        content = _text(event.get("thought"), field)
        call = _object(event, "tool_call") or {
            "name": event.get("tool_name"),
            "arguments": event.get("action"),
        }
        turn = {"role": "assistant", "content": content or None, "reasoning": event.get("reasoning_content")}
        return [{**turn, "tool_calls": [{"id": event.get("tool_call_id"), **call}]}]
    if kind in ("ObservationEvent", "AgentErrorEvent", "UserRejectObservation"):
        content = event.get("observation", event.get("error", event.get("rejection_reason")))
        tool = {"role": "tool", "name": event.get("tool_name"), "tool_call_id": event.get("tool_call_id")}
        return [{**tool, "content": _text(content, field)}]
    return []


def _text(value: Any, field: str) -> str:
    """Text, a part, or an object that holds either under ``content``, ``output`` or ``error``."""
    if isinstance(value, dict) and "text" not in value:
        value = next(
            (value[key] for key in ("content", "output", "error") if value.get(key) is not None), None
        )
    if value is None or isinstance(value, str):
        return value or ""
    return parts_text(value if isinstance(value, list) else [value], field)


def swe_agent(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """SWE-agent: the ``history`` of a trajectory file; a tool's turn answers the calls in ``tool_call_ids``."""
    turns: list[Any] = []
    for turn in listed(row[present(row, ("history",))], "history"):
        ids = turn.get("tool_call_ids") if isinstance(turn, dict) else None
        turns.append({**turn, "tool_call_id": str(ids[0])} if isinstance(ids, list) and ids else turn)
    return [with_extras(Draft(with_system(row, read_turns(turns, "history", names))), row)]


def smolagents(row: ForeignRow, names: TurnNames) -> list[Draft]:
    """smolagents: the ``steps`` of a run, ``agent.memory.get_full_steps()``."""
    turns: list[Any] = []
    for index, step in enumerate(listed(row[present(row, ("steps",))], "steps")):
        if not isinstance(step, dict):
            raise Unfit("not_object", f"steps[{index}]", f"is {named(step)}, not a step")
        if step.get("system_prompt") is not None:
            turns.append({"role": "system", "content": step["system_prompt"]})
        elif step.get("task") is not None:
            turns.append({"role": "user", "content": step["task"]})
        elif step.get("plan") is not None:
            turns.append({"role": "assistant", "content": step["plan"]})
        elif "step_number" in step:
            turns += _step(step, f"steps[{index}]")
    return [with_extras(Draft(with_system(row, read_turns(turns, "steps", names))), row)]


def _step(step: ForeignRow, field: str) -> list[Any]:
    """A model's output and what came of it. Code is part of the output; calls with arguments are calls."""
    output = step.get("model_output")
    content = output if isinstance(output, str) or output is None else _text(output, field)
    calls = listed(step.get("tool_calls") or [], f"{field}.tool_calls")
    functions = [call.get("function", call) for call in calls if isinstance(call, dict)]
    called = (
        calls
        if any(isinstance(f, dict) and isinstance(f.get("arguments"), dict) for f in functions)
        else None
    )
    turns: list[Any] = [
        {"role": "assistant", "content": content or (None if called else content), "tool_calls": called}
    ]
    error = step.get("error")
    results = (step.get("observations"), error.get("message") if isinstance(error, dict) else error)
    observed = "\n".join(text for text in (_text(result, field) for result in results) if text)
    if observed:
        identity = (
            next((call.get("id") for call in calls if isinstance(call, dict)), None) if called else None
        )
        turns.append({"role": "tool" if called else "user", "content": observed, "tool_call_id": identity})
    return turns


def holds_objects(row: ForeignRow, field: str, *keys: str) -> bool:
    """Whether a field is a list in which an object has one of the keys."""
    value = row.get(field)
    return isinstance(value, list) and any(
        isinstance(v, dict) and any(k in v for k in keys) for v in value[:8]
    )


FORMATS: tuple[
    tuple[str, str, set[str], Callable[[ForeignRow, TurnNames], list[Draft]], Callable[[ForeignRow], bool]],
    ...,
] = (
    (
        "swe_agent",
        "SWE-agent: trajectory and history",
        {"history", "trajectory"},
        swe_agent,
        lambda row: holds_objects(row, "history", "role") and isinstance(row.get("trajectory"), list),
    ),
    (
        "openhands",
        "OpenHands: history, trajectory or events of actions and observations",
        {*_EVENTS},
        openhands,
        lambda row: any(
            holds_objects(row, field, "action", "observation", "kind")
            and not holds_objects(row, field, "role", "state")
            for field in _EVENTS
        ),
    ),
    (
        "smolagents",
        "smolagents: steps of a run",
        {"steps"},
        smolagents,
        lambda row: (
            holds_objects(row, "steps", "step_number", "task") and holds_objects(row, "steps", "step_number")
        ),
    ),
)
