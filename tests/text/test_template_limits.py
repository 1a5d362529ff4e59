"""Templates are rendered within limits, in any thread, and leave nothing behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from paged_stream.text import template_budget
from paged_stream.text.template_budget import TemplateLimitError
from paged_stream.text.template_sandbox import render

MESSAGES = [{"role": "user", "content": "hi"}]
LOOP = "{% for i in range(100) %}{% set ns.s = STEP %}{% endfor %}"


def grows(step: str, start: str = "'xxxxxxxx'") -> str:
    """A template that computes a value from itself, a hundred times."""
    return "{% set ns = namespace(s=START) %}".replace("START", start) + LOOP.replace("STEP", step)


ENDLESS = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "{% for i in range(90000) recursive %}{{ loop(range(90000)) if loop.depth < 5 }}{% endfor %}",
    "{% for i in range(90000) %}{% set x = range(90000)|list|string %}{% endfor %}",
]
LARGE = [
    "{{ 'x' * 10**10 }}",
    "{{ [1] * 10**10 }}",
    "{{ 10**(10**10) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'.encode().center(10**10) }}",
    "{{ 'x'|center(10**10) }}",
    "{{ 'x'|indent(10**10) }}",
    "{{ '\t'.expandtabs(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ '%(a)s%(a)s%(a)s%(a)s' % {'a': 'x' * 2000000} }}",
    "{{ '{:>10000000000}'.format(1) }}",
    "{{ '{:>{w}}'.format(1, w=10**10) }}",
    "{{ '{0}{0}{0}'|format('x' * 4000000) }}",
    "{{ (1).to_bytes(10**10, 'big') }}",
    "{{ (1).from_bytes(('x' * 4000000).encode(), 'big') % 3 }}",
    "{{ 5|round(-10**9) }}",
    "{{ messages|tojson(indent=10**9) }}",
    "{{ ('a' * 1000000).translate({97: 'x' * 1000000}) }}",
    "{{ range(99999)|map('string')|join('x' * 100000) }}",
    "{{ range(100000)|map('center', 1000000)|list }}",
    "{{ range(100000)|slice(10**9)|list }}",
    "{{ ('<!--' * 900000)|striptags }}",
    "{{ ([[1] * 1000] * 40)|sum(start=[]) }}",
    grows("ns.s ~ ns.s"),
    grows("ns.s + ns.s"),
    grows("ns.s.replace('x', 'xx')"),
    grows("ns.s|replace('x', 'xx')"),
    grows("ns.s.join(ns.s)"),
    grows("(ns.s, ns.s)"),
    grows("[ns.s, ns.s]") + "{{ ns.s|tojson }}",
    grows("ns.s + ns.s", "[1]"),
    grows("namespace(a=ns.s, b=ns.s)") + "{{ ns.s }}",
    grows("{'a': ns.s, 'b': ns.s}"),
    "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns|string }}",
    "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(100) %}"
    "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) %}" + "x" * 5000 + "{% endfor %}"
    "{% endfor %}",
    "x" * (1 << 19),
]


@pytest.fixture
def little_time(monkeypatch):
    """Half a second of processor time."""
    monkeypatch.setattr(template_budget, "_SECONDS", 0.5)


@pytest.mark.parametrize("template", ENDLESS)
def test_what_takes_too_long_is_refused(little_time, template):
    with pytest.raises(TemplateLimitError, match="processor time"):
        render(template, {"messages": MESSAGES})


@pytest.mark.parametrize("template", LARGE, ids=lambda template: template[:60])
def test_what_is_too_large_is_refused(little_time, template):
    with pytest.raises(TemplateLimitError, match="more than"):
        render(template, {"messages": MESSAGES})


@pytest.mark.parametrize(
    "template",
    [
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(9) }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ ''.__class__ }}{{ namespace().__init__.__globals__.x }}",
        "{{ messages.append(1) }}",
        "{{ lipsum(10**9) }}",
    ],
)
def test_what_is_no_template_is_an_error(template):
    with pytest.raises(Exception):  # noqa: B017  # of any kind, at once
        render(template, {"messages": MESSAGES})


def test_other_threads_render_the_same_and_are_limited_too(little_time):
    threads = threading.active_count()
    good = "{% for m in messages %}{{ m.content * 3 }}{% endfor %}"

    def each(number: int) -> str | None:
        try:
            return render(good if number % 2 else ENDLESS[0], {"messages": MESSAGES})
        except TemplateLimitError:
            return None

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(each, range(6))) == [None, "hihihi"] * 3
    assert threading.active_count() == threads


def test_long_conversations_are_within_the_limits():
    template = (
        "{% set ns = namespace(text='') %}{% for m in messages %}"
        "{% set ns.text = ns.text + m.role + ': ' + m['content'] | trim + '\n' %}"
        "{% if loop.index0 > 0 and messages[loop.index0 - 1].role == m.role %}!{% endif %}"
        "{% endfor %}{{ ns.text }}{{ messages | map(attribute='content') | join('\n') | length }}"
        "{{ '--'.join(messages | map(attribute='role')) | length }}"
        "{{ messages[1:] | tojson(indent=4) | length }}"
    )
    messages = [{"role": ("user", "assistant")[i % 2], "content": "x" * 900} for i in range(300)]
    text = render(template, {"messages": messages})
    assert text.count("x" * 900) == 300 and "!" not in text
    one = [{"role": "user", "content": "y" * 2_000_000}]
    assert render(template, {"messages": one}).count("y") == 2_000_000
