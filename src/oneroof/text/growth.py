"""How large the results of a template's operators, methods and filters can get, said before they are made.

Only those are named whose result can outgrow what they are given; the others need no leave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from oneroof.text.budget import Budget, OverspentError, weigh

FORBIDDEN_FILTERS = ("pprint", "striptags", "urlize")  # slow on hostile text, and none of a chat's business
_FORBIDDEN_METHODS = ("expandtabs", "to_bytes", "translate")
# Filters that pass on the values they are given, or some of them, without reading the text in them.
_SELECTING = (
    *("attr", "count", "d", "default", "first", "items", "last", "length", "list", "map", "random"),
    *("reject", "rejectattr", "reverse", "select", "selectattr"),
)


def allow_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Asked before `left` `operator` `right` is worked out."""
    if operator == "%" and isinstance(left, str):
        values = list(right) if isinstance(right, tuple) else [right]
        budget.allow_format(left, [*values, *right.values()] if isinstance(right, dict) else values)
    elif operator == "+" and _is_sequence(left) and _is_sequence(right):
        budget.allow(_extent(left) + _extent(right))
    elif operator == "*" and isinstance(right, int):
        budget.allow(
            (left.bit_length() + right.bit_length()) // 3 if isinstance(left, int) else _extent(left) * right
        )
    elif operator == "*" and isinstance(left, int):
        budget.allow(left * _extent(right))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        budget.allow(left.bit_length() * abs(right) // 3)


def allow_method(budget: Budget, owner: Any, name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Asked before a method of a string or a number is called; returns what to call it with."""
    budget.allow_numbers(values)
    if name in _FORBIDDEN_METHODS:
        raise OverspentError(f"it calls {name}, which chat templates may not")
    if name == "replace" and len(values) >= 2:
        budget.allow(_replaced(owner, values[0], values[1]))
    if name == "join" and values:
        parts = _parts(budget, values[0])
        budget.allow(_joined(budget, parts, owner))
        return (parts,)
    return values


def allow_filter(
    budget: Budget, name: str, values: tuple[Any, ...], named: dict[str, Any]
) -> tuple[Any, ...]:
    """Asked before a filter is applied; returns what to apply it to, beginning with what Jinja hands it."""
    budget.allow_numbers([*values, *named.values()])
    check = _FILTERS.get(name)
    if name not in _SELECTING:
        for value in (*values, *named.values()):
            budget.spend_on(value, text=True)
    return values if check is None else check(budget, values, named)


def spend_on_filtered(budget: Budget, name: str, result: Any) -> None:
    """What a filter returned is charged: in full, or, where it only selects, for the places in its list."""
    if name in _SELECTING:
        budget.spend(16 * len(result) if isinstance(result, list) else 1)
    else:
        budget.spend_on(result)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (str, bytes, list, tuple))


def _extent(value: Any) -> int:
    """Characters of a string; what the places of a list weigh."""
    return len(value) * (1 if isinstance(value, (str, bytes)) else 16) if _is_sequence(value) else 0


def _replaced(text: Any, old: Any, new: Any) -> int:
    if not all(isinstance(value, (str, bytes)) for value in (text, old, new)):
        return 0
    return len(text) + int(text.count(old)) * len(new)


def _parts(budget: Budget, values: Iterable[Any]) -> list[Any]:
    """The values of a lazy sequence, one step each."""
    parts = []
    for value in values:
        budget.step()
        parts.append(value)
        budget.allow(16 * len(parts))
    return parts


def _joined(budget: Budget, parts: list[Any], between: Any) -> int:
    return weigh(parts, text=True, limit=budget.size) + len(str(between)) * len(parts)


def _join(budget: Budget, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    context, sequence, *rest = values
    parts = _parts(budget, sequence)
    budget.allow(_joined(budget, parts, named.get("d", rest[0] if rest else "")))
    return (context, parts, *rest)


def _replace(budget: Budget, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    given = dict(zip(("old", "new"), values[2:4], strict=False)) | named
    budget.allow(_replaced(str(values[1]), str(given.get("old", "")), str(given.get("new", ""))))
    return values


def _format(budget: Budget, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    budget.allow_format(str(values[0]), [*values[1:], *named.values()])
    return values


def _lines(budget: Budget, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """`indent` and `wordwrap` put something into each line, at worst behind each character."""
    text = next((value for value in values if isinstance(value, str)), "")
    inserted = [value for value in (*values, *named.values()) if value is not text]
    widest = max(
        (len(v) if isinstance(v, str) else v if isinstance(v, int) else 0 for v in inserted), default=0
    )
    budget.allow(len(text) + (text.count("\n") + 1) * widest)
    wrap = named.get("wrapstring", values[4] if len(values) > 4 else None)
    budget.allow(len(text) * (1 + len(wrap or "")) if isinstance(wrap, str) else 0)
    return values


def _sum(budget: Budget, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    start = named.get("start", values[3] if len(values) > 3 else 0)
    if not isinstance(start, (int, float)):
        raise OverspentError("it sums what are not numbers")
    return values


def _tojson(budget: Budget, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    for value in (*values[1:], *named.values()):
        width = len(value) if isinstance(value, str) else value if isinstance(value, int) else 0
        if width > 16:
            raise OverspentError("it indents JSON by more than 16")
    return values


_FILTERS: dict[str, Callable[[Budget, tuple[Any, ...], dict[str, Any]], tuple[Any, ...]]] = {
    "format": _format,
    "indent": _lines,
    "join": _join,
    "replace": _replace,
    "sum": _sum,
    "tojson": _tojson,
    "wordwrap": _lines,
}
