"""What the small files beside a vocabulary declare: added tokens, special ones, and tokens with a role.

Read are `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, with the precedence that
transformers 5 gives them. Code that they name (`auto_map`) is never run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from oneroof.errors import UserError
from oneroof.jsonfile import read_object


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token matched in the text before anything else is done to it."""

    text: str
    id: int | None  # None: the next free one
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Declared:
    """The declarations of one folder."""

    tokens: tuple[AddedToken, ...]  # those with an id in its order, then those without
    roles: Mapping[str, str]  # `eos_token` and its like -> the token's text
    config: Mapping[str, object]  # tokenizer_config.json as it stands; empty where there is none


def read_declared(folder: Path) -> Declared:
    """What `folder` declares; nothing where it has none of the files. Raises `UserError` on a broken one."""
    config = read_object(folder / "tokenizer_config.json")
    listed = config.get("added_tokens_decoder")
    legacy = {} if listed is not None else read_object(folder / "special_tokens_map.json")
    named = {**config, **legacy}
    roles = {
        key: text
        for key, value in named.items()
        if key.endswith("_token") and (text := _text(value)) is not None
    }
    extra = [text for key in _EXTRA for text in _texts(named.get(key))]
    special = [*_in_order(roles), *extra]
    if listed is not None:
        tokens = _from_decoder(listed, set(special), folder)
    else:
        tokens = _from_map(read_object(folder / "added_tokens.json"), set(special), folder)
    known = {token.text for token in tokens}
    unlisted = [text for text in dict.fromkeys(special) if text not in known]
    return Declared(
        tokens=(*tokens, *(AddedToken(text=text, id=None, special=True) for text in unlisted)),
        roles=roles,
        config=config,
    )


_EXTRA = ("additional_special_tokens", "extra_special_tokens")
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def _in_order(roles: Mapping[str, str]) -> Iterator[str]:
    """The order in which transformers hands out new ids: its seven roles first."""
    yield from (roles[key] for key in _ROLES if key in roles)
    yield from (text for key, text in roles.items() if key not in _ROLES)


def _text(value: object) -> str | None:
    """A token is written as its text or as an object with `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def _texts(value: object) -> list[str]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items if (text := _text(item)) is not None]


def _from_decoder(listed: object, named: set[str], folder: Path) -> list[AddedToken]:
    """`added_tokens_decoder`: id -> the token with its flags; one that a role or a list names is special."""
    if not isinstance(listed, dict):
        raise _broken(folder, "tokenizer_config.json", "added_tokens_decoder")
    tokens = []
    for number, entry in listed.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or not number.isdecimal():
            raise _broken(folder, "tokenizer_config.json", f"added_tokens_decoder[{number}]")
        if entry["content"] in named:
            tokens.append(AddedToken(text=entry["content"], id=int(number), special=True))
            continue
        special = bool(entry.get("special", False))
        tokens.append(
            AddedToken(
                text=entry["content"],
                id=int(number),
                special=special,
                lstrip=bool(entry.get("lstrip", False)),
                rstrip=bool(entry.get("rstrip", False)),
                normalized=bool(entry.get("normalized", not special)),
                single_word=bool(entry.get("single_word", False)),
            )
        )
    return sorted(tokens, key=lambda token: token.id or 0)


def _from_map(ids: Mapping[str, object], special: set[str], folder: Path) -> list[AddedToken]:
    """`added_tokens.json`, the older form: text -> id, special where a role or a list says so."""
    tokens = []
    for text, number in ids.items():
        if not isinstance(number, int):
            raise _broken(folder, "added_tokens.json", repr(text))
        flag = text in special
        tokens.append(AddedToken(text=text, id=number, special=flag, normalized=not flag))
    return sorted(tokens, key=lambda token: token.id or 0)


def _broken(folder: Path, file: str, place: str) -> UserError:
    return UserError(
        f"{folder / file}: {place} is not an added token; copy the file again from the model's folder"
    )
