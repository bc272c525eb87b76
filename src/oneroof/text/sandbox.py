"""The Jinja of chat templates: set up as transformers does, every loop, call and value charged to a budget.

Jinja's own sandbox keeps a template from the machine; it does not keep it from looping for ever or filling
the memory. Here the syntax tree is rewritten before it is compiled (a step in every loop and macro, a check
on joined texts and lists), and operators, filters, calls and printing are weighed. A single operation on
values that are themselves allowed is not interrupted, so that the limits hold to within about a second.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from oneroof.text.budget import Budget, OverspentError
from oneroof.text.growth import (
    FORBIDDEN_FILTERS,
    allow_filter,
    allow_method,
    allow_operator,
    spend_on_filtered,
)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Compiles templates, and runs them inside ``with sandbox.spending(budget)``; threads keep apart."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Meter, jinja2.ext.loopcontrols])
        self._running = threading.local()
        self.filters["tojson"] = _tojson
        for name in FORBIDDEN_FILTERS:
            del self.filters[name]
        for name, apply in self.filters.items():
            self.filters[name] = self._weighed(name, apply)
        del self.globals["lipsum"]  # nonsense text by the million words
        self.globals["dict"] = _Dict()
        self.globals["namespace"] = _Namespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.finalize = self._printed

    def compiled(self, source: str) -> jinja2.Template:
        """The template of `source`. Raises what Jinja raises on wrong syntax."""
        tree = _Metered(self.extensions[_Meter.identifier]).visit(self.parse(source))
        tree.set_environment(self)
        return self.template_class.from_code(
            self, self.compile(cast(jinja2.nodes.Template, tree)), self.make_globals(None)
        )

    @contextmanager
    def spending(self, budget: Budget) -> Iterator[None]:
        """What this thread renders inside is charged to `budget`."""
        self._running.budget = budget
        try:
            yield
        finally:
            self._running.budget = None

    @property
    def budget(self) -> Budget:
        """The running budget of this thread; outside, where Jinja folds constants, nothing may be spent."""
        budget: Budget | None = getattr(self._running, "budget", None)
        if budget is None:
            raise OverspentError("nothing is being rendered")
        return budget

    def concat(self, parts: Iterable[str]) -> str:
        """The joined output of a macro, a block or a `set` block."""
        texts = list(parts)
        self.budget.allow(sum(map(len, texts)))
        text = "".join(texts)
        self.budget.spend_on(text)
        return text

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """An operator of the template."""
        allow_operator(self.budget, operator, left, right)
        result = super().call_binop(context, operator, left, right)
        self.budget.spend_on(result)
        return result

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call in the template."""
        budget = __self.budget
        budget.step()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, (str, bytes, int)):
            budget.allow_numbers(list(kwargs.values()))
            args = allow_method(budget, owner, __obj.__name__, args)
        result = super().call(__context, __obj, *args, **kwargs)
        budget.spend_on(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` as the sandbox guards it, bounded."""
        guarded = super().wrap_str_format(value)
        if guarded is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            self.budget.allow_format(value.__self__, [*args, *kwargs.values()])
            return guarded(*args, **kwargs)

        return bounded

    def _printed(self, value: Any) -> Any:
        """A value on its way to the output, also where a constant is folded."""
        if not isinstance(value, (str, int, float)):
            self.budget.spend_on(value, text=True)
        return value

    def _weighed(self, name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(apply)
        def weighed(*args: Any, **kwargs: Any) -> Any:
            self.budget.step()
            result = apply(*allow_filter(self.budget, name, args, kwargs), **kwargs)
            spend_on_filtered(self.budget, name, result)
            return result

        return weighed


class _Meter(jinja2.ext.Extension):
    """What rewritten templates call; also the tag around what training learns, which prints its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("generation"), [], [], body).set_lineno(line)

    def generation(self, caller: jinja2.runtime.Macro) -> str:
        return str(caller())

    def step(self) -> None:
        """In each turn of a loop and each macro; `call` has charged for it already."""

    def made(self, value: object) -> object:
        """A list, tuple or dict written in the template; `call` has charged for it already."""
        return value

    @jinja2.pass_eval_context
    def joined(self, eval_context: jinja2.nodes.EvalContext, *values: object) -> str:
        """The `~` operator."""
        budget: Budget = self.environment.budget  # type: ignore[attr-defined]
        for value in values:
            budget.spend_on(value, text=True)
        join = jinja2.runtime.markup_join if eval_context.autoescape else jinja2.runtime.str_join
        text = join(values)
        budget.spend_on(text)
        return text


class _Metered(jinja2.visitor.NodeTransformer):
    """Rewrites a template's syntax tree so that it calls the meter."""

    def __init__(self, meter: jinja2.ext.Extension) -> None:
        self._meter = meter

    def visit(self, node: jinja2.nodes.Node, *args: Any, **kwargs: Any) -> jinja2.nodes.Node:
        """The node that takes the place of `node`."""
        self.generic_visit(node)
        if isinstance(node, _REPEATED):
            step = jinja2.nodes.ExprStmt(self._meter.call_method("step", lineno=node.lineno))
            node.body.insert(0, step.set_lineno(node.lineno))
        elif isinstance(node, jinja2.nodes.Concat):
            return self._meter.call_method("joined", node.nodes, lineno=node.lineno)
        elif isinstance(node, (jinja2.nodes.List, jinja2.nodes.Tuple, jinja2.nodes.Dict)):
            stored = isinstance(node, jinja2.nodes.Tuple) and node.ctx != "load"  # a place, not a value
            constant = all(isinstance(child, jinja2.nodes.Const) for child in node.iter_child_nodes())
            return node if stored or constant else self._meter.call_method("made", [node], lineno=node.lineno)
        return node


_REPEATED = (jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock, jinja2.nodes.Block)


class _Dict:
    """`dict` of the templates: the function, without the type's inner doors."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` of the templates: no name in it begins with an underscore; it prints as its name alone."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that a name in it may be `self`
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"a namespace cannot hold {name!r}: it begins with an underscore"
        )


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes characters for HTML; models were trained without."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
