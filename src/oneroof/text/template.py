"""A chat template: found in its folder, compiled in the sandbox, rendered within limits set by the input."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jinja2
import jinja2.meta

from oneroof.errors import UserError
from oneroof.jsonfile import read_object
from oneroof.text.budget import Budget, OverspentError, weigh
from oneroof.text.declared import Declared
from oneroof.text.sandbox import Sandbox

_LONGEST = 1 << 20  # characters of a template's source
_SPARE = 1 << 18  # characters that any value may have, however small the input
_SECONDS = 0.5


class Template:
    """One compiled template."""

    def __init__(self, source: str, name: str) -> None:
        """`name` is for messages. Raises `UserError` where the source does not compile, or is too long."""
        self.source = source
        self._name = name
        if len(source) > _LONGEST:
            raise UserError(
                f"{name} has {len(source)} characters; {_LONGEST} are allowed; take the model's own"
            )
        self._sandbox = Sandbox()
        try:
            self._compiled = self._sandbox.compiled(source)
        except (
            Exception
        ) as error:  # hostile source fails in many ways: syntax, recursion, Python's own compiler
            raise UserError(
                f"{name} does not compile: {_reason(error)}; mend it or take the model's own"
            ) from error

    @property
    def variables(self) -> frozenset[str]:
        """The names that the template reads: `messages`, `tools`, `enable_thinking` ..."""
        return frozenset(jinja2.meta.find_undeclared_variables(self._sandbox.parse(self.source)))

    def render(self, variables: Mapping[str, object]) -> str:
        """The text. Raises `UserError` where the template refuses `variables`, fails or goes past its limits.

        A value, the result included, may have four times the characters of the input plus 262144; all values
        made, 64 times that; the processor time is half a second and 2 us a character of input.
        """
        given = len(self.source) + weigh(variables, text=True, limit=1 << 32)
        size = 4 * given + _SPARE
        budget = Budget(size=size, work=64 * size, seconds=_SECONDS + 2e-6 * given)
        parts: list[str] = []
        try:
            with self._sandbox.spending(budget):
                for part in self._compiled.generate(dict(variables)):
                    parts.append(part)
                    size -= len(part)
                    budget.step()
                    if size < 0:
                        budget.allow(budget.size - size)
        except OverspentError as error:
            raise UserError(f"{self._name} was stopped: {error}; mend it or take the model's own") from error
        except Exception as error:  # the template is a program: it may fail in any way
            raise UserError(f"{self._name} cannot render these messages: {_reason(error)}") from error
        return "".join(parts)


def find_templates(folder: Path, declared: Declared) -> dict[str, str]:
    """Name -> source of the templates in `folder`; the usual one is called `default`.

    chat_template.jinja (with additional_chat_templates/NAME.jinja) goes before tokenizer_config.json's
    `chat_template`, a source or a list of named ones, and that before chat_template.json.
    """
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    sources = {name: _read(path) for name, path in files.items() if path.exists()}
    for place, value in (
        ("tokenizer_config.json", declared.config.get("chat_template")),
        ("chat_template.json", read_object(folder / "chat_template.json").get("chat_template")),
    ):
        if not sources and value is not None:
            sources = _named(value, folder / place)
    return sources


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again from the model's folder") from error


def _named(value: object, path: Path) -> dict[str, str]:
    """One source, a list of {name, template}, or an object name -> source."""
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    if isinstance(value, dict) and all(isinstance(text, str) for pair in value.items() for text in pair):
        return value
    raise UserError(f"{path}: chat_template is neither a text nor a list of named texts; copy the file again")


def _reason(error: Exception) -> str:
    """What went wrong, in the words of the template where it has any."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, jinja2.TemplateError):
        return str(error)
    return f"{type(error).__name__}: {error}"
