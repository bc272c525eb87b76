"""A template renders as in transformers; a hostile one is stopped soon, small, and in one line."""

from __future__ import annotations

import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from oneroof.errors import UserError
from oneroof.text.template import Template

MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b>."},
    {"role": "user", "content": "Grüß 你好 😀\n  two\n", "n": 3, "list": [1, "a", {"k": None}]},
    {
        "role": "assistant",
        "content": "ok",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": "<&>"}}}],
    },
]
ORDINARY = {
    "blocks are trimmed": "{% for m in messages %}\n  {% if m.n %}"
    "\n x {{ m.n }}\n  {% endif %}\n{% endfor %}\nend\n",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}"
    "{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "json": "{{ messages | tojson }}|{{ messages[2].tool_calls[0] | tojson(indent=2) }}|{{ 'é<' | tojson }}",
    "json ascii": "{{ messages[1].content | tojson(ensure_ascii=True) }}"
    "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
    "namespace": "{% set ns = namespace(x=1, self=2) %}{% for m in messages %}"
    "{% set ns.x = ns.x + 1 %}{% endfor %}{{ ns.x }}",
    "dict": "{% set d = dict(a=1, **{'b': 2}) %}{{ d.items() | list }}{{ dict.fromkeys(['x']) }}",
    "tilde": "{{ 1 ~ 'a' ~ none ~ messages[1].list ~ undefined_name }}",
    "autoescape": "{% autoescape true %}{{ '<' ~ messages[0].content }}{% endautoescape %}",
    "methods": "{{ 'a-b'.replace('-', '+') }}{{ ', '.join(['x', 'y']) }}"
    "{{ 'ab'.center(6) }}{{ 'a b'.split() | last }}",
    "formats": "{{ '%s is %03d' % ('a', 7) }}{{ '{{{}}} {:>4}'.format('x', 1) }}"
    "{{ '%d'|format(5) }}{{ '{a}'.format(a=1) }}",
    "filters": "{{ [3,1,2]|sort|join(',') }}{{ messages|map(attribute='role')|list }}"
    "{{ 'a\nb'|indent(2) }}{{ [1,2]|sum }}",
    "selection": "{{ messages|selectattr('role','equalto','user')|list|length }}"
    "{{ messages|rejectattr('n')|first|items|list }}",
    "more filters": "{{ ' a '|trim }}{{ 'aB'|upper|lower|capitalize }}{{ x|default('d') }}"
    "{{ [1,1]|unique|list }}{{ 'abc'|replace('b','x') }}",
    "batches": "{{ [1,2,3]|batch(2,'-')|list }}{{ [1,2,3]|slice(2)|list }}"
    "{{ {'b':1,'a':2}|dictsort }}{{ 'a b'|wordwrap(1) }}",
    "arithmetic": "{{ 2 ** 10 + 3 * 4 - 7 % 4 }}{{ 'ab' * 3 }}"
    "{{ [1] * 2 + [2] }}{{ 1.5 * 2 }}{{ -1 % 3 }}{{ 7 // 2 }}",
    "slices": "{{ messages[::-1][0].role }}{{ messages[1:]|length }}"
    "{% for a, b in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}",
    "macros": "{% macro f(x, y='d') %}<{{ x }}{{ y }}{{ caller() if caller }}"
    ">{% endmacro %}{{ f(1) }}{% call f(2) %}c{% endcall %}",
    "set block": "{% set a %}x{{ 1 }}{% endset %}{{ a ~ a }}{% set a, b = 1, 2 %}"
    "{{ a + b }}{% filter upper %}q{% endfilter %}",
    "generation": "{% for m in messages %}{% generation %}{% set y = 1 %}"
    "{{ m.content }}{% endgeneration %}{{ y }}{% endfor %}",
    "recursion": "{% for m in [[1], [2]] recursive %}{% if m is iterable %}"
    "({{ loop(m) }}){% else %}{{ m }}{% endif %}{% endfor %}",
    "blocks": "{% block a %}{{ messages[0].role }}{% endblock %}{{ self.a() }}",
    "tests": "{{ x is defined }}{{ 1 is in [1] }}{{ 'a' is string }}"
    "{{ 4 is divisibleby 2 }}{{ none is none }}{{ messages is iterable }}",
    "date": "{{ strftime_now('%Y') }}",
    "cycler": "{% set c = cycler('a', 'b') %}{{ c.next() }}"
    "{{ c.next() }}{% set j = joiner('|') %}{{ j() }}{{ j() }}",
    "shadowed names": "{% set range = [1] %}{% set made = 2 %}"
    "{% set step = 3 %}{{ range }}{{ made }}{{ step }}",
    "undefined": "{{ nothing }}{{ messages[0].nothing }}{{ nothing is undefined }}",
    "constants": "{{ 1 }}{{ 1.0 }}{{ true }}{{ none }}{{ [1, 2] }}{{ {'a': (1, 2)} }}{{ 'a' if false }}",
}
FAILING = {
    "raise_exception": "{{ raise_exception('roles must take turns') }}",
    "no attribute": "{{ nothing.more }}",
    "no addition": "{{ messages[0].nothing + 'a' }}",
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ cycler.__init__.__globals__ }}",
    "mutation": "{{ messages.append(1) }}",
    "dunder in a namespace": "{% set ns = namespace() %}{% set ns.__x__ = 1 %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
}
ENDLESS = {
    "a loop in a loop": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "a filtered loop": "{% for a in range(100000) %}"
    "{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
    "output": "{% for a in range(100000) %}{% for b in range(100000) %}xxxxxxxxxx{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}"
    "{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "a silent macro": "{% macro f(n) %}{% if n %}{% set a = f(n-1) + f(n-1) %}"
    "{% endif %}{% endmacro %}{{ f(50) }}",
    "a macro without end": "{% macro f() %}a{{ f() }}{% endmacro %}{{ f() }}",
    "a loop without end": "{% for a in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "a block without end": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "chained filters": "{% for i in range(100000) %}"
    "{% set x = range(100000)|map('int')|map('string')|list %}{% endfor %}",
    "maxima": "{% for i in range(100000) %}{% set x = range(100000)|max %}{% endfor %}",
    "selections": "{% for i in range(100000) %}{% set x = range(100000)|reject|first %}{% endfor %}",
}
_NS = "{% set ns = namespace(x=[1], s='aaaa') %}{% for i in range(99) %}"
_BIG = "{% set s = 'a' * 200000 %}"
LARGE = {
    "text times": "{{ 'a' * 10**9 }}",
    "times text": "{{ 10**9 * 'a' }}",
    "list times": "{{ [1] * 10**9 }}",
    "power": "{{ 10 ** 10000000 }}",
    "squares": "{% set ns = namespace(x=10) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubled by +": _NS + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubled by ~": _NS + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubled by a block": _NS + "{% set y %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = y %}{% endfor %}",
    "doubled by replace": _NS + "{% set ns.s = ns.s.replace('a', 'aa') %}{% endfor %}",
    "doubled by join": _NS + "{% set ns.s = [ns.s, ns.s]|join %}{% endfor %}",
    "nested lists": _NS + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "nested tuples": _NS + "{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
    "nested dicts": _NS + "{% set ns.x = {1: ns.x, 2: ns.x} %}{% endfor %}{{ ns.x == ns.x }}",
    "nested views": _NS
    + "{% set ns.x = dict.fromkeys(range(2), ns.x).values()|list %}{% endfor %}{{ ns.x }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "zfill": "{{ '1'.zfill(10**9) }}",
    "center": "{{ 'a'|center(width=10**9) }}",
    "to_bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "expandtabs": "{{ '\t\t\t'.expandtabs(100000) }}",
    "translate": _BIG + "{{ s.translate({97: s}) }}",
    "replace": _BIG + "{{ s.replace('a', s) }}",
    "replace nothing": _BIG + "{{ s|replace(old='', new=s) }}",
    "join letters": _BIG + "{{ s.join(s) }}",
    "join a map": _BIG + "{{ ''.join(range(100000)|map('default', s)) }}",
    "a list of one text": _BIG + "{{ range(16000)|map(attribute='x', default=s)|list }}",
    "sorted": _BIG
    + "{% for i in range(99) %}{% set x = range(9999)|map(attribute='x', default=s)|list|sort %}{% endfor %}",
    "% width": "{{ '%1000000000d' % 1 }}",
    "% star": "{{ '%*d' % (10**9, 1) }}",
    "% name": "{{ '%(a)1000000000d' % {'a': 1} }}",
    "% many": "{{ ('%9999d' * 9999) % ((1,) * 9999) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "format inner": "{{ '{:{}}'.format(1, 10**9) }}",
    "format map": "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
    "format many": _BIG + "{{ ('{0}' * 1000).format(s) }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "indent": "{{ ('\n' * 200000)|indent(200000) }}",
    "indent by text": "{{ ('a\n' * 100000)|indent('x' * 100000) }}",
    "wordwrap": "{{ ('a ' * 100000)|wordwrap(1, wrapstring='x' * 100000) }}",
    "batch": "{{ [1]|batch(10**9, 1)|list }}",
    "slice": "{{ [1]|slice(10**9)|list }}",
    "sum": "{{ ([[1]] * 9999)|sum(start=[]) }}",
    "tojson": "{{ [[1]]|tojson(indent=10**8) }}",
    "range": "{{ range(10**9) }}",
    "many texts": _BIG + "{% for i in range(100000) %}{% set x = s ~ i %}{% endfor %}",
    "many in a list": _BIG
    + "{% set ns = namespace(l=[]) %}{% for i in range(9999) %}{% set ns.l = ns.l + [s ~ i] %}{% endfor %}",
    "lorem ipsum": "{{ lipsum(n=100000) }}",
}
BROKEN = {
    "syntax": "{% if %}",
    "no such filter": "{{ 1|nosuch }}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "loops": "{% for a in b %}" * 200 + "{% endfor %}" * 200,
    "length": "x" * 2_000_000,
}


@pytest.mark.parametrize("name", ORDINARY)
def test_it_renders_as_transformers_does(name: str) -> None:
    variables = {"messages": MESSAGES, "tools": None, "documents": None, "add_generation_prompt": True}
    (expected,), _ = render_jinja_template(
        [MESSAGES], chat_template=ORDINARY[name], add_generation_prompt=True
    )
    assert Template(ORDINARY[name], "it").render(variables) == expected


@pytest.mark.parametrize("name", FAILING)
def test_it_fails_where_transformers_fails(name: str) -> None:
    with pytest.raises(Exception, match=r"."):
        render_jinja_template([MESSAGES], chat_template=FAILING[name])
    with pytest.raises(UserError, match="it cannot render these messages: "):
        Template(FAILING[name], "it").render({"messages": MESSAGES})


def test_what_the_template_raises_is_said() -> None:
    with pytest.raises(UserError, match="roles must take turns"):
        Template(FAILING["raise_exception"], "it").render({})


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_template_is_stopped(name: str) -> None:
    began, busy = time.perf_counter(), time.thread_time()
    with pytest.raises(UserError, match=r"was stopped|recursion depth"):
        Template(ENDLESS[name], "it").render({})
    assert time.thread_time() - busy < 1.5
    assert time.perf_counter() - began < 10  # the machine may be busy with other things


@pytest.mark.parametrize("name", LARGE)
def test_a_swelling_template_is_stopped_small(name: str) -> None:
    template = Template(LARGE[name], "it")
    busy = time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"was stopped|Range too big|undefined"):
            template.render({})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20  # bytes
    assert time.thread_time() - busy < 3  # tracing makes everything several times slower


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_refused_when_it_is_loaded(name: str) -> None:
    busy = time.thread_time()
    with pytest.raises(UserError, match=r"does not compile|are allowed") as caught:
        Template(BROKEN[name], "it")
    assert "\n" not in str(caught.value)
    assert time.thread_time() - busy < 2


def test_large_input_is_no_attack() -> None:
    source = "{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim + '\n' }}{% endfor %}"
    long = [
        {"role": "user", "content": "word " * 400_000},
        *({"role": "user", "content": "hi"} for _ in range(5000)),
    ]
    text = Template(source, "it").render({"messages": long})
    assert len(text) == len("<user>" + "word " * 400_000) + 5000 * len("<user>hi\n")


def test_threads_have_budgets_of_their_own() -> None:
    template = Template("{% for i in range(n) %}{{ 'x' * 100 }}{% endfor %}", "it")

    def length(turns: int) -> int:
        try:
            return len(template.render({"n": turns}))
        except UserError:
            return -1

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(length, [10, 90000] * 10)) == [1000, -1] * 10


def test_variables_are_those_the_template_reads() -> None:
    template = Template("{{ messages }}{% if tools %}{{ x }}{% endif %}", "it")
    assert template.variables == {"messages", "tools", "x"}
