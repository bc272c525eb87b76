"""A YAML file of options (`--config FILE`): the same names as the flags, nested fields as nested keys.

Every scalar is taken as the word that stands in the file and typed by its flag: `1.10` stays `1.10`.
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
    except yaml.YAMLError as error:
        raise UserError(
            f"--config {path} is not YAML ({error}); name: value lines are allowed; mend it"
        ) from None
    if root is None:
        return {}
    found: dict[str, Given] = {}
    for name, node in _walk(root, path.name, "", {flag.path for flag in listed}):
        where = f"{path.name} line {node.start_mark.line + 1}: {name}"
        if name in found:
            raise UserError(f"{where} is given twice; each option once is allowed; remove one")
        found[name] = Given(_words(node, where), where)
    return found


def _walk(node: yaml.Node, file: str, prefix: str, known: set[str]) -> Iterator[tuple[str, yaml.Node]]:
    """Each option of a mapping and its value, nested ones by their dotted name."""
    if not isinstance(node, yaml.MappingNode):
        place = f"{file} line {node.start_mark.line + 1}"
        raise UserError(
            f"{place}: {prefix.rstrip('.') or 'the file'} holds no names; name: value lines are allowed"
        )
    for key, value in node.value:
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


def _words(node: yaml.Node, where: str) -> tuple[str, ...] | None:
    rows = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(row, yaml.ScalarNode) for row in rows):
        raise UserError(f"{where} is nested; a value or a list of values is allowed; mend it")
    if isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("", "~", "null"):
        return None
    return tuple(str(row.value) for row in rows)
