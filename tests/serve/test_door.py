"""Where keys are set, no route and no spelling of a path leads past them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from served import SERVER, Served, serving

from oneroof.errors import UserError
from oneroof.serve.app import make_routes
from oneroof.serve.door import Admin, Doorman, Keyed, Open
from oneroof.serve.keys import Keys, read_keys
from oneroof.serve.limits import Limits
from oneroof.serve.run import Place, is_loopback
from oneroof.serve.service import Service

KEY, OTHER, ADMIN = "a-key-of-the-tests", "another-key-of-them", "an-administrators-key"
BODY = {"prompt": "a", "max_tokens": 1}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def guarded(model: Path) -> Iterator[Served]:
    with serving(model, keys=(KEY, OTHER), admins=(ADMIN,)) as found:
        yield found


def routes() -> list[Any]:
    app: FastAPI = make_routes(Service(["tiny"], Limits()), Doorman(Keys([KEY]), Keys([ADMIN])))
    return list(app.routes)


def test_every_route_is_one_of_ours_and_few_are_open() -> None:
    assert all(isinstance(route, Keyed) for route in routes())
    assert {route.path for route in routes() if isinstance(route, Open)} == {"/health", "/ready"}


@pytest.mark.parametrize("route", routes(), ids=lambda route: route.path)
def test_a_route_is_closed_to_whoever_has_no_key(guarded: Served, route: Any) -> None:
    path = route.path.replace("{name:path}", "tiny")
    wrong = [{}, bearer("wrong-key-indeed"), {"authorization": KEY}, bearer(""), {"x-api-key": "no"}]
    wrong += [bearer(ADMIN)] if not isinstance(route, Admin) else [bearer(KEY)]
    for method in ("GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE"):
        for headers in wrong:
            request = guarded.client.build_request(method, path, headers=headers, json=BODY)
            status = guarded.run(guarded.client.send(request)).status_code
            if isinstance(route, Open):
                assert status == (200 if method == "GET" else 405)
            else:
                assert status == 401


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions/",
        "//v1/completions",
        "/health/../v1/completions",
        "/health%2f..%2fv1%2fcompletions",
        "/ready/v1/completions",
        "/V1/completions",
        "/v1/completions?path=/health",
        "/v1/completions#/health",
        "/%76%31/completions",
        "/v1/./completions",
        "/v1/completions%00/health",
        "/docs",
        "/redoc",
        "/nowhere",
        "/",
        "/openapi.json",
    ],
)
def test_no_spelling_leads_past_the_key(guarded: Served, path: str) -> None:
    for method in ("GET", "POST"):
        answer = guarded.run(guarded.client.request(method, SERVER + path, json=BODY))
        assert answer.status_code == 401


def test_a_key_opens(guarded: Served) -> None:
    for headers in (bearer(KEY), bearer(OTHER), {"x-api-key": KEY}, {"authorization": f"bearer  {KEY}"}):
        assert guarded.post("/v1/completions", BODY, headers=headers).status_code == 200
    assert guarded.get("/health").status_code == guarded.get("/ready").status_code == 200


def test_an_administrators_key_opens_what_is_its_own(guarded: Served) -> None:
    answer = guarded.post("/v1/load_lora_adapter", {}, headers=bearer(ADMIN))
    assert answer.status_code == 400
    assert "not served" in answer.json()["error"]["message"]


def test_without_an_administrators_key_its_routes_are_shut(server: Served) -> None:
    assert server.post("/v1/load_lora_adapter", {}).status_code == 403


def test_what_was_read_for_one_key_is_not_shared_with_another(guarded: Served) -> None:
    body = {"prompt": "a long enough prompt that it fills some pages of the cache", "max_tokens": 1}

    def cached(key: str, **more: object) -> int:
        answer = guarded.post("/v1/completions", body | more, headers=bearer(key)).json()
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert cached(KEY) == 0
    assert cached(KEY) > 0
    assert cached(OTHER) == 0
    assert cached(KEY, cache_salt="other") == 0


def test_a_foreign_page_does_not_reach_a_local_server(model: Path) -> None:
    with serving(model, local=True) as local:
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "10.0.0.1:80"):
            assert local.get("/v1/models", headers={"host": host}).status_code == 200
        for host in ("evil.example", "localhost.evil.example:8000"):
            assert local.get("/v1/models", headers={"host": host}).status_code == 403
        plain = {"content-type": "text/plain"}
        answer = local.post("/v1/completions", content=b'{"prompt": "a"}', headers=plain)
        assert answer.status_code == 415


def test_keys_are_kept_as_hashes_and_compared_whole() -> None:
    keys = Keys([KEY, OTHER])
    assert KEY not in repr(vars(keys)) and KEY.encode() not in b"".join(keys._hashes)
    assert (keys.holder(KEY.encode()), keys.holder(OTHER.encode())) == ("key1", "key2")
    assert keys.holder(KEY.encode() + b"x") is keys.holder(b"") is None


def test_keys_come_from_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n{OTHER}\n")
    file.chmod(0o600)
    assert len(read_keys(file, "KEYS", {"KEYS": f"{ADMIN}, {KEY}"})) == 3
    assert len(read_keys(None, "KEYS", {})) == 0
    for text in ("", "# nothing\n", "short\n", "with space in it\n"):
        file.write_text(text)
        with pytest.raises(UserError, match="allowed"):
            read_keys(file, "KEYS", {})
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(tmp_path / "none", "KEYS", {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.example"])
def test_a_public_address_needs_keys(host: str) -> None:
    def place(keys: tuple[str, ...] = (), insecure: bool = False) -> Place:
        return Place(host=host, port=0, users=Keys(keys), admins=Keys(), insecure=insecure)

    with pytest.raises(UserError, match="--api-key-file"):
        place().check()
    place((KEY,)).check()
    place(insecure=True).check()
    assert not is_loopback(host)
    assert all(map(is_loopback, ("127.0.0.1", "::1", "localhost", "127.8.8.8")))
