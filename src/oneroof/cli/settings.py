"""A YAML file of options (`--config FILE`): the same names as the flags, nested fields as nested keys.

Every scalar is taken as the word that stands in the file and typed by its flag: `1.10` stays `1.10`. A
list of numbers, of lists of them too, is the text of a flag that takes one text: `cases: [[8, 4]]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from oneroof.cli.flags import Flag, Given, nearest
from oneroof.errors import UserError


def read_settings(path: Path, listed: Sequence[Flag]) -> dict[str, Given]:
    """What the file at `path` gives, by flag path; UserError with the line for what is no option."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--config {path} cannot be read ({error}); a YAML file is allowed; check the path"
        ) from None
    except (yaml.YAMLError, RecursionError) as error:  # the second, of brackets without end
        raise UserError(
            f"--config {path} is not YAML ({error}); name: value lines are allowed; mend it"
        ) from None
    if root is None:
        return {}
    found: dict[str, Given] = {}
    known = {flag.path: flag for flag in listed}
    for name, node in _walk(root, path.name, "", set(known)):
        where = f"{path.name} line {node.start_mark.line + 1}: {name}"
        if name in found:
            raise UserError(f"{where} is given twice; each option once is allowed; remove one")
        numbers = None if known[name].many or known[name].kinds != (str,) else _numbers(node)
        found[name] = Given(_words(node, where) if numbers is None else (numbers,), where)
    return found


def _walk(node: yaml.Node, file: str, prefix: str, known: set[str]) -> Iterator[tuple[str, yaml.Node]]:
    """Each option of a mapping and its value, nested ones by their dotted name."""
    if not isinstance(node, yaml.MappingNode):
        place = f"{file} line {node.start_mark.line + 1}"
        raise UserError(
            f"{place}: {prefix.rstrip('.') or 'the file'} holds no names; name: value lines are allowed"
        )
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            place = f"{file} line {key.start_mark.line + 1}"
            raise UserError(f"{place}: a name is a list or a mapping; name: value lines are allowed; mend it")
        name = prefix + str(key.value).replace("-", "_")
        if name in known:
            yield name, value
        elif any(other.startswith(name + ".") for other in known):
            yield from _walk(value, file, name + ".", known)
        else:
            close = nearest(name, sorted(known))
            hint = f"did you mean {close}?" if close else "--help lists them"
            line = key.start_mark.line + 1
            raise UserError(
                f"{file} line {line}: {name} is no option of this command; its flags are allowed; {hint}"
            )


def _numbers(node: yaml.Node) -> str | None:
    """A list of whole numbers, or of such lists, as it is typed on the command line; None for all else."""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value) if node.style is None and str(node.value).isdecimal() else None
    if not isinstance(node, yaml.SequenceNode):
        return None
    parts = [_numbers(row) for row in node.value]
    return None if None in parts else f"[{','.join(part for part in parts if part is not None)}]"


def _words(node: yaml.Node, where: str) -> tuple[str, ...] | None:
    rows = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(row, yaml.ScalarNode) for row in rows):
        raise UserError(
            f"{where} is nested; a value or a list of values is allowed; put a text with brackets in quotes"
        )
    if isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("", "~", "null"):
        return None
    return tuple(str(row.value) for row in rows)
