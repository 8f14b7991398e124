"""A chat template that takes memory or time without bound, or prints chance, is refused before it does, with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from encode_tokenizers import FAMILIES
from small import datamix, recipe

from datamix.core.errors import RecipeError
from datamix.tokenize.chat_template import ChatTemplate, TemplateFailure
from datamix.tokenize.template_limits import examine, parse
from datamix.tokenize.template_probe import _check

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
GROWS = {
    "power": "{{ 9 ** (9 ** 9) }}",
    "power of a value": "{{ (messages|length) ** 99999 }}",
    "bit by bit": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "repeat": "{{ 'x' * 10000000000 }}",
    "repeat of a list": "{{ (messages * 999999999)|length }}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "concatenation": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "width": "{{ 'x'.ljust(99999999999) }}",
    "filter": "{{ 'x'|center(99999999999) }}",
    "indentation": "{{ messages|tojson(indent=9999999999) }}",
    "format": "{{ '%99999999999d' % 1 }}",
    "format of a value": "{{ '%*d' % (99999999999, 1) }}",
    "method": "{{ '{:>99999999999}'.format('x') }}",
    "replacement": "{% set a = 'x' * 9999 %}{% set b = a.replace('x', a) %}{{ b.replace('x', b) }}",
    "join": "{{ ('x' * 99999999).join(messages * 9999) }}",
}
LINES = {name: f"first line\n{text}" for name, text in GROWS.items()}


def render(text: str, messages: list[dict[str, Any]] = TALK) -> str:
    return ChatTemplate(text, (), {}, "t.jinja").render(messages, None, {}, False)


@pytest.mark.parametrize("name", GROWS)
def test_what_grows_without_bound_is_refused_with_its_line(name: str) -> None:
    with pytest.raises(RecipeError, match=r"t\.jinja, line 2: .*chat_template") as caught:
        render(LINES[name])
    assert "\n" not in str(caught.value)


def test_it_is_refused_before_a_build_too() -> None:
    with pytest.raises(RecipeError, match=r"t\.jinja, line 2"):
        _check(LINES["power"], (), "{}", "t.jinja")


@pytest.mark.parametrize(
    "text",
    [
        "{{ range(1000000000000)|length }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ messages|random }}",
        "{{ lipsum() }}",
        "{{ messages|map(attribute='content') }}",
    ],
)
def test_what_the_text_shows_is_refused_without_running(text: str) -> None:
    with pytest.raises(RecipeError, match=r"t\.jinja, line 2: "):
        _check(f"first line\n{text}", (), "{}", "t.jinja")
    with pytest.raises(RecipeError, match=r"t\.jinja, line 2: "):
        render(f"first line\n{text}")


def test_recursion_is_refused() -> None:
    macro = "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}"
    with pytest.raises(RecipeError, match="calls itself without end"):
        _check(macro, (), "{}", "t.jinja")
    with pytest.raises(RecipeError, match="nested too deeply"):
        render("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")
    with pytest.raises(RecipeError, match="nested too deeply"):
        _check("{{ " + "[" * 5000 + "]" * 5000 + " }}", (), "{}", "t.jinja")


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages.copy }}",
        "{{ raise_exception }}",
        "{{ dict }}",
        "{{ messages|selectattr('role')|string }}",
        "{{ 'a' ~ messages[0].keys }}",
        "{{ cycler('a') }}",
        "{% for m in messages %}{{ m.content.upper }}{% endfor %}",
    ],
)
def test_addresses_of_objects_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="an object with its address"):
        render(text)


def test_addresses_in_the_texts_of_records_are_texts() -> None:
    content = "<built-in method upper of str object at 0x7f00deadbeef>"
    assert render("{{ messages[0].content }}", [{"role": "user", "content": content}]) == content
    assert render("{{ messages|tojson }}", [{"role": "user", "content": content}])


def test_sets_are_refused_for_their_order() -> None:
    with pytest.raises(RecipeError, match="a set, whose order is chance"):
        render("{{ messages[0].keys() - {} .keys() }}")


def test_texts_that_differ_between_two_runs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from datamix.tokenize import template_probe

    # no operation of Jinja is known that passes the other checks: an object whose text is its hash stands for one
    script = "import datamix.tokenize.template_limits as t, datamix.tokenize.template_probe as p\n"
    script += "t.printed_address = lambda *a: None\nimport datamix.tokenize.chat_template as c\n"
    script += "c.printed_address = t.printed_address\np.render_examples()"
    monkeypatch.setattr(template_probe, "_SCRIPT", script)
    with pytest.raises(RecipeError, match="other text each time"):
        _check("{{ cycler('a') }}{{ 2 ** 3 }}", (), "{}", "t.jinja")


def test_memory_that_no_check_sees_is_stopped_by_the_limit_of_the_process() -> None:
    lines = ["{% set x %}{{ messages|tojson }}{% endset %}"] + ["{% set x %}{{ x }}{{ x }}{% endset %}"] * 40
    with pytest.raises(RecipeError, match="1 GB"):
        _check("".join(lines) + "{{ x }}", (), "{}", "t.jinja")


def test_the_day_is_fixed_also_where_the_function_is_printed() -> None:
    assert (
        render("{{ strftime_now('%d %b %Y') }} {{ strftime_now }}") == "26 Jul 2024 <function strftime_now>"
    )


def test_published_templates_need_no_guard() -> None:
    folder = Path(__file__).parent / "templates"
    for path in [
        *folder.glob("*.jinja"),
        *Path(jinja2.__file__).parent.parent.glob("trl/chat_templates/*.jinja"),
    ]:
        assert examine(parse(path.read_text("utf-8"), path.name)) == ([], False), path.name
    assert len(list(folder.glob("*.jinja"))) >= len(FAMILIES)


def test_guarded_templates_render_as_before() -> None:
    text = "{{ 'ab' * 3 }}{{ 2 ** 5 }}{{ '%05d' % 7 }}{{ '-'.join(messages|map(attribute='role')) }}{{ 'x'|center(5) }}"
    text += "{% set a = 'q' %}{% set a = a ~ a %}{{ a }}{{ messages[0].content.replace('a', 'zz') }}{{ [1, 2]|join(', ') }}"
    assert examine(parse(text, "t"))[1]
    assert render(text) == "ababab3200007user-assistant  x  qqzz1, 2"
    with pytest.raises(TemplateFailure):
        render("{{ 2 ** 'x' }}")


def test_plan_and_build_refuse_such_a_template_with_exit_2(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    (tmp_path / "bad.jinja").write_text("{{ messages[0].content }}\n{{ 9 ** (9 ** 9) }}", encoding="utf-8")
    value = json.loads(path.read_text("utf-8")) | {"chat_template": "bad.jinja"}
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    for command in (["plan", path], ["build", path, "-o", tmp_path / "out"]):
        run = datamix(*command)
        assert run.returncode == 2, run.stderr
        assert "bad.jinja, line 2: a power of" in run.stderr
        assert not (tmp_path / ".datamix").exists()
