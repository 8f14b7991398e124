"""What a template can see in a text."""

from __future__ import annotations

import pytest
from encode_tokenizers import FAMILIES, TEMPLATES

from datamix.tokenize.chat_template import ChatTemplate
from datamix.tokenize.template_analysis import text_dependence


def look(template: str, *texts: str) -> bool:
    return text_dependence(ChatTemplate(template, (), {}).tree).ignores(texts)


LOOP = "{%% for message in messages %%}%s{%% endfor %%}"


@pytest.mark.parametrize("name", FAMILIES)
def test_ordinary_words_are_nothing_to_any_known_template(name: str) -> None:
    assert look((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), "How are you?", "我很好。")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("{% if '</think>' in message.content %}x{% endif %}", "a</think>b"),
        ("{{ message.content.split('###')[-1] }}", "a###b"),
        ("{{ message.content.replace('colour', 'color') }}", "my colour"),
        ("{{ message.content | replace('a', 'b') }}", "a"),
        ("{% if message.content.startswith('/no') %}x{% endif %}", "/nothink"),
        ("{% if message.content == 'stop' %}x{% endif %}", "stop"),
        ("{% if message.content in ['stop', 'go'] %}x{% endif %}", "go"),
        ("{% if message.content is equalto 'stop' %}x{% endif %}", "stop"),
        ("{% set c = message.content %}{% if c == 'stop' %}x{% endif %}", "stop"),
        (
            "{% for part in message.content.split('a') %}{% if part == 'stop' %}x{% endif %}{% endfor %}",
            "astop",
        ),
    ],
)
def test_words_a_template_looks_for_are_seen_and_others_are_not(body: str, text: str) -> None:
    assert not look(LOOP % body, text)
    assert look(LOOP % body, "zzz")


@pytest.mark.parametrize(
    "body",
    [
        "{% if message.content | length > 9 %}x{% endif %}",
        "{{ message.content[:5] }}",
        "{% if message.content[0] == '#' %}x{% endif %}",
        "{{ message.content | upper }}",
        "{{ message.content.title() }}",
        "{{ message.content | indent(4) }}",
        "{{ message.content | trim('x') }}",
        "{{ message.content.strip('x') }}",
        "{{ '%s' % message.content }}",
        "{% if message.content < 'b' %}x{% endif %}",
        "{% if message.content in kwargs_of_record %}x{% endif %}",
        "{% for n in range(message.content | length) %}x{% endfor %}",
        "{% set c = message.content %}{% if c[-1] == '?' %}x{% endif %}",
        "{% filter upper %}{{ message.content }}{% endfilter %}",
        "{{ message.content | wordcount }}",
        "{% if (message.content | first) == 'a' %}x{% endif %}",
    ],
)
def test_what_is_not_known_to_be_harmless_counts_as_seen(body: str) -> None:
    assert not look(LOOP % body, "zzz")


def test_turns_that_are_compared_with_each_other_must_differ() -> None:
    template = "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}"
    template += LOOP % "{% if message == users[-1] %}x{% endif %}{{ message.content }}"
    assert look(template, "a", "b")
    assert not look(template, "a", "a")
