"""The HTTP side, over a real connection on the loopback."""

import asyncio
import json
import ssl
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tidemill_contracts.reasons import Reason
from tidemill_runtime.errors import Overloaded, Poison
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.problems import install_problems, status_of
from tidemill_runtime.settings import Door, GrpcSettings, HttpSettings, split_address
from tidemill_testkit.authority import Authority
from tidemill_testkit.ports import free_address


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_a_server_whose_opening_is_given_up_is_closed(turns: int) -> None:
    address = free_address()
    opening = asyncio.ensure_future(HttpServer(HttpSettings(listen=address), Health()).__aenter__())
    for _ in range(turns):
        await asyncio.sleep(0)
    assert opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*split_address(address))
    assert "http" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_where_a_certificate_is_given_http_is_https(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "tests")
    pair = authority.pair("service")
    secure = HttpSettings(tls_cert=str(pair.certificate), tls_key=str(pair.key))
    trusting = ssl.create_default_context(cafile=authority.file)
    strange = ssl.create_default_context(cafile=Authority(tmp_path / "other", "others").file)

    def live(address: str, context: ssl.SSLContext | None = None) -> int:
        with urlopen(f"{address}/live", timeout=60, context=context) as answer:
            return int(answer.status)

    async with running(HttpServer(secure, Health())) as server:
        at = f"127.0.0.1:{server.port}"
        assert await asyncio.to_thread(live, f"https://{at}", trusting) == 200
        with pytest.raises(URLError, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(live, f"https://{at}", strange)
        with pytest.raises((OSError, HTTPException)):
            await asyncio.to_thread(live, f"http://{at}")


@pytest.mark.parametrize("settings", [GrpcSettings, HttpSettings])
@pytest.mark.parametrize("half", ["tls_cert", "tls_key"])
def test_half_a_certificate_is_refused_rather_than_served_in_the_open(
    settings: type[Door], half: str, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="tls_cert and tls_key are given together"):
        settings(**{half: str(Authority(tmp_path, "tests").file)})


def _fetch(port: int, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], str]:
    headers = {} if body is None else {"content-type": "application/json"}
    request = Request(f"http://127.0.0.1:{port}{path}", body, headers)
    try:
        with urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read().decode()


async def fetch(port: int, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], str]:
    return await asyncio.to_thread(_fetch, port, path, body)


async def test_live_and_ready_tell_what_is_wrong() -> None:
    health = Health()
    faults: dict[str, str | None] = {"stream": None, "watchdog": None}
    health.require_ready("stream", lambda: faults["stream"])
    health.require_live("watchdog", lambda: faults["watchdog"])
    async with running(HttpServer(HttpSettings(), health)) as server:
        assert (await fetch(server.port, "/live"))[0] == 200
        status, _, body = await fetch(server.port, "/ready")
        assert (status, json.loads(body)["faults"]) == (503, {"lifecycle": "the service is starting or stopping"})
        health.opened = True
        assert (await fetch(server.port, "/ready"))[0] == 200
        faults["stream"] = "no partitions"
        assert (await fetch(server.port, "/live"))[0] == 200
        assert json.loads((await fetch(server.port, "/ready"))[2])["faults"] == {"stream": "no partitions"}
        faults["watchdog"] = "stalled"
        assert (await fetch(server.port, "/live"))[0] == 503


async def test_metrics_are_served_in_the_text_format() -> None:
    async with running(HttpServer(HttpSettings(), Health())) as server:
        status, headers, body = await fetch(server.port, "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    assert "# HELP tidemill_stream_records_total Records that the stream runner applied." in body


async def test_a_services_own_routes_stand_beside_and_its_errors_are_problems() -> None:
    app = FastAPI()
    install_problems(app)

    @app.get("/own")
    async def own(n: int) -> dict[str, Any]:
        if n == 1:
            raise Poison(Reason.UNKNOWN_STREAM, "no stream 'x'", field="stream", fix="apply it first")
        if n == 2:
            raise Overloaded("full", retry_after_s=3)
        return {"n": n}

    async with running(HttpServer(HttpSettings(), Health(), app)) as server:
        assert (await fetch(server.port, "/own?n=5"))[2] == '{"n":5}'
        status, headers, body = await fetch(server.port, "/own?n=1")
        assert (status, headers["content-type"]) == (404, "application/problem+json")
        problem = json.loads(body)
        assert (problem["reason"], problem["field"], problem["fix"]) == ("unknown_stream", "stream", "apply it first")
        status, headers, _ = await fetch(server.port, "/own?n=2")
        assert (status, headers["retry-after"]) == (429, "3")
        assert json.loads((await fetch(server.port, "/own"))[2])["reason"] == "missing_field"


class Order(BaseModel):
    """A body of which FastAPI itself finds what is wrong."""

    model_config = ConfigDict(extra="forbid")

    count: int = Field(ge=1)
    kind: Literal["a", "b"] = "a"


async def test_what_fastapi_refuses_has_the_same_names() -> None:
    app = FastAPI()
    install_problems(app)

    @app.post("/orders")
    async def orders(order: Order) -> dict[str, Any]:
        if order.count == 9:
            raise KeyError("a bug")
        return {"count": order.count}

    bad = {
        b"": "empty",
        b'{"count":': "undecodable",
        b"[" * 100_000: "undecodable",
        b'{"kind": "\xff"}': "bad_utf8",
        b"{}": "missing_field",
        b'{"count": "x"}': "wrong_type",
        b'{"count": 0}': "out_of_range",
        b'{"count": 1, "kind": "c"}': "out_of_range",
        b'{"count": 1, "more": 1}': "unknown_field",
        b'{"count": 9}': "handler",
    }
    async with running(HttpServer(HttpSettings(), Health(), app)) as server:
        assert (await fetch(server.port, "/orders", b'{"count": 3}'))[2] == '{"count":3}'
        for body, reason in bad.items():
            status, headers, text = await fetch(server.port, "/orders", body)
            assert (status, json.loads(text)["reason"]) == (500 if reason == "handler" else 400, reason)
            assert headers["content-type"] == "application/problem+json"
        seen = (await fetch(server.port, "/metrics"))[2]
        assert (await fetch(server.port, "/nowhere"))[0] == 404
    assert all(f'tidemill_http_refused_total{{reason="{reason}"}}' in seen for reason in bad.values())


def test_every_reason_has_a_status() -> None:
    assert all(400 <= status_of(reason) < 600 for reason in Reason)
