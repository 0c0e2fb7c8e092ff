"""The server by the `openai` client: answers are the pipeline's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI
from running_server import ask, running, serving
from serve_cases import about, client_of, image_part, png

from vtexport.runtime.pipeline import Pipeline
from vtexport.serve.server import Server

PRUNED, QUESTION = "tiny:prunesid-16", "What is on the table?"


@pytest.mark.parametrize("plan", ["none", "prunesid-16", "cdpruner-16"])
def test_an_answer(client: OpenAI, fresh: Callable[[str], Pipeline], frames: list[np.ndarray], plan: str) -> None:
    expected = fresh(plan).generate(frames[0], QUESTION, max_new_tokens=12)
    for _ in range(2):  # the second from what was kept
        reply = client.chat.completions.create(model=f"tiny:{plan}", messages=about(QUESTION, frames[0]), max_tokens=12)
        assert reply.choices[0].message.content == expected.text
        assert reply.choices[0].finish_reason == {"length": "length", "eos": "stop"}[expected.finish_reason]
        assert reply.usage is not None
        assert reply.usage.prompt_tokens == expected.prompt_tokens
        assert reply.usage.completion_tokens == len(expected.token_ids)
        assert reply.usage.model_extra == {"visual_tokens": expected.visual_tokens}
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == expected.prompt_tokens - 1
    assert reply.model_extra is not None
    assert reply.model_extra["vtexport"]["images"][0]["reused"]


def test_a_stream(client: OpenAI, fresh: Callable[[str], Pipeline], frames: list[np.ndarray]) -> None:
    expected = fresh("prunesid-16").generate(frames[1], QUESTION, max_new_tokens=20)
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(
        client.chat.completions.create(
            model=PRUNED, messages=about(QUESTION, frames[1]), max_completion_tokens=20, **options
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(pieces) == expected.text
    assert len([piece for piece in pieces if piece]) > 3
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 20
    assert len({chunk.id for chunk in chunks}) == 1


def test_several_turns_and_images(client: OpenAI, fresh: Callable[[str], Pipeline], frames: list[np.ndarray]) -> None:
    turns = [*about("What is this?", frames[0]), {"role": "assistant", "content": "A cup."}, *about("?", *frames[1:])]
    given = [
        {**each, "content": [{"type": "image"} if part["type"] == "image_url" else part for part in each["content"]]}
        if isinstance(each["content"], list)
        else each
        for each in turns
    ]
    expected = fresh("prunesid-16").generate(frames, given, max_new_tokens=8)
    reply = client.chat.completions.create(model=PRUNED, messages=turns, max_tokens=8)
    assert reply.choices[0].message.content == expected.text
    assert reply.usage is not None
    assert reply.usage.model_extra == {"visual_tokens": 48}


def test_no_image(client: OpenAI, fresh: Callable[[str], Pipeline]) -> None:
    expected = fresh("prunesid-16").generate([], "x?", max_new_tokens=8)
    reply = client.chat.completions.create(model=PRUNED, messages=[{"role": "user", "content": "x?"}], max_tokens=8)
    assert reply.choices[0].message.content == expected.text


def test_sampling(client: OpenAI, fresh: Callable[[str], Pipeline], frames: list[np.ndarray]) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9, "seed": 4}
    expected = fresh("prunesid-16").generate(frames[0], QUESTION, max_new_tokens=12, **options)
    reply = client.chat.completions.create(model=PRUNED, messages=about(QUESTION, frames[0]), max_tokens=12, **options)
    assert reply.choices[0].message.content == expected.text


@pytest.mark.parametrize("stream", [False, True])
def test_stop(client: OpenAI, fresh: Callable[[str], Pipeline], frames: list[np.ndarray], stream: bool) -> None:
    whole = fresh("prunesid-16").generate(frames[0], QUESTION, max_new_tokens=20).text
    at = next(
        n for n in range(4, len(whole) - 2) if whole[n : n + 2].isprintable() and "\ufffd" not in whole[n : n + 2]
    )
    stop = whole[at : at + 2]
    options: dict[str, Any] = {"stop": [stop, "never"], "stream": stream, "max_tokens": 20}
    reply = client.chat.completions.create(model=PRUNED, messages=about(QUESTION, frames[0]), **options)
    if stream:
        chunks = list(reply)  # type: ignore[arg-type]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
        assert reply.usage.completion_tokens < 20
    assert (text, reason) == (whole[: whole.find(stop)], "stop")


def test_models(client: OpenAI) -> None:
    listed = list(client.models.list())
    assert [model.id for model in listed] == ["tiny:none", "tiny:prunesid-16", "tiny:cdpruner-16"]
    assert listed[1].model_extra is not None
    assert listed[1].model_extra["vtexport"] == {"plan": "prunesid-16", "family": "llava", "visual_tokens": 16}
    assert client.models.retrieve(PRUNED).id == PRUNED
    for call in (
        lambda: client.models.retrieve("gpt"),
        lambda: client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}]),
    ):
        with pytest.raises(openai.NotFoundError, match="is not served; give one of tiny:none, tiny:prunesid-16"):
            call()


def test_one_plan_goes_by_the_served_name_alone(served_bundle: Path, frames: list[np.ndarray]) -> None:
    with running(served_bundle, plans=["prunesid-16"], served_name="eyes/v1") as server, client_of(server) as client:
        assert [model.id for model in client.models.list()] == ["eyes/v1", "eyes/v1:prunesid-16"]
        replies = [
            client.chat.completions.create(model=name, messages=about("x?", frames[0]), max_tokens=4)
            for name in ("eyes/v1", "eyes/v1:prunesid-16")
        ]
        assert replies[0].choices == replies[1].choices
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="eyes/v1:none", messages=about("x?", frames[0]))


def test_plans_take_turns_in_memory(served_bundle: Path, frames: list[np.ndarray]) -> None:
    with running(served_bundle, loaded=2) as server, client_of(server) as client:
        for plan in ("none", "prunesid-16", "cdpruner-16", "none"):
            client.chat.completions.create(model=f"tiny:{plan}", messages=about("x?", frames[0]), max_tokens=2)
        assert list(server.worker._pipelines) == ["cdpruner-16", "none"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is"),
        ({"response_format": {"type": "json_object"}}, "response_format is"),
        ({"n": 3}, "n is 3"),
        ({"messages": about("x?", "data:image/png;base64,aaaa")}, "image 1 is no image|image 1"),
        ({"messages": about("x?", "file:///etc/passwd")}, "opens no files"),
        ({"messages": about("x?", "http://127.0.0.1:1/a.png")}, "not on the public internet"),
        ({"messages": about("x <image>?")}, "holds 1 images"),
        ({"messages": [{"role": "user", "content": " "}, {"role": "user", "content": "x" * 400}]}, "positions"),
        ({"max_tokens": 300}, "300 new tokens are asked for"),
    ],
)
def test_requests_that_cannot_be_answered(client: OpenAI, fields: dict[str, Any], message: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=message) as found:
            client.chat.completions.create(**{"model": PRUNED, "messages": about("x?"), "stream": stream, **fields})
        assert found.value.type == "invalid_request_error"
    assert client.chat.completions.create(model=PRUNED, messages=about("x?"), max_tokens=1).choices


def test_an_image_of_too_many_pixels(served_bundle: Path, frames: list[np.ndarray]) -> None:
    with (
        running(served_bundle, max_pixels=4799) as server,
        client_of(server) as client,
        pytest.raises(openai.BadRequestError, match="image 1 has 80 x 60 pixels, more than the 4,799"),
    ):
        client.chat.completions.create(model=PRUNED, messages=about("x?", frames[0]))


def test_images_by_http(served_bundle: Path, fresh: Callable[[str], Pipeline], frames: list[np.ndarray]) -> None:
    expected = fresh("prunesid-16").generate(frames[0], QUESTION, max_new_tokens=8)
    here = {"/a.png": (200, {}, png(frames[0])), "/b": (302, {"Location": "/a.png"}, b"")}
    away = {"Location": "http://localhost:1/a.png"}
    with (
        serving({**here, "/c": (302, away, b"")}) as (url, asked),
        running(served_bundle, allow_hosts=["127.0.0.1"]) as server,
        client_of(server) as client,
    ):
        for path in ("/a.png", "/b"):
            reply = client.chat.completions.create(model=PRUNED, messages=about(QUESTION, url + path), max_tokens=8)
            assert reply.choices[0].message.content == expected.text
        assert asked == ["/a.png", "/b", "/a.png"]
        # the name localhost has further addresses than the one that is allowed, or only that one
        with pytest.raises(openai.BadRequestError, match=r"not on the public internet|cannot be reached"):
            client.chat.completions.create(model=PRUNED, messages=about(QUESTION, url + "/c"))


def test_images_of_an_allowed_folder(
    served_bundle: Path, fresh: Callable[[str], Pipeline], frames: list[np.ndarray], tmp_path: Path
) -> None:
    expected = fresh("prunesid-16").generate(frames[0], QUESTION, max_new_tokens=8)
    (tmp_path / "a.png").write_bytes(png(frames[0]))
    with running(served_bundle, allow_files=tmp_path) as server, client_of(server) as client:
        messages = about(QUESTION, (tmp_path / "a.png").as_uri())
        reply = client.chat.completions.create(model=PRUNED, messages=messages, max_tokens=8)
        assert reply.choices[0].message.content == expected.text
        with pytest.raises(openai.BadRequestError, match="is not in the folder"):
            client.chat.completions.create(model=PRUNED, messages=about(QUESTION, "/etc/passwd"))


def test_a_key(served_bundle: Path) -> None:
    with running(served_bundle, api_key="secret") as server:
        for key in ("other", "secret2"):
            with client_of(server, key) as client, pytest.raises(openai.AuthenticationError, match="the API key is"):
                client.models.list()
        with client_of(server, "secret") as client:
            assert list(client.models.list())
        assert ask(server, None, "/v1/models")[0] == 401
        assert ask(server, None, "/health")[0] == 200


@pytest.mark.parametrize(
    ("body", "path", "headers", "status", "message"),
    [
        (b"{}", "/v1/chat/completions", {"Content_Type": "text/plain"}, 415, "application/json"),
        (b"{}", "/v1/chat/completions", {"Host": "evil.example:8000"}, 421, "not as evil.example"),
        (None, "/v1/chat/completions", {}, 405, "does not take GET"),
        (b"{}", "/v1/completions", {}, 404, "there is nothing at /v1/completions"),
        (b"{", "/v1/chat/completions", {}, 400, "the body is not JSON"),
        (b"x" * 2000, "/v1/chat/completions", {}, 413, "more than 1,000 bytes"),
        (b"{}", "/v1/chat/completions", {"Content_Length": "2000"}, 413, "more than 1,000 bytes"),
        (b"{}", "/v1/chat/completions", {"Content_Length": "999"}, 408, "did not come within 0.3 s"),
    ],
)
def test_requests_of_another_form(
    small_server: Server, body: bytes | None, path: str, headers: dict[str, str], status: int, message: str
) -> None:
    found, said, given = ask(small_server, body, path, **headers)
    assert (found, given.get_content_type()) == (status, "application/json")
    assert message in said["error"]["message"]


@pytest.fixture(scope="module")
def small_server(served_bundle: Path) -> Any:
    with running(served_bundle, max_body=1000, body_seconds=0.3) as found:
        yield found


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000"])
def test_names_of_this_machine(server: Server, host: str) -> None:
    assert ask(server, None, "/health", Host=host)[:2] == (200, {"status": "ok"})


def test_metrics(server: Server, client: OpenAI, frames: list[np.ndarray]) -> None:
    client.chat.completions.create(model=PRUNED, messages=about("x?", frames[2]), max_tokens=3)
    for _ in range(1000):  # the thread that answers is free a moment after the last byte has left
        status, text, headers = ask(server, None, "/metrics")
        assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        lines = text.decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        if values["vtexport_running"] == "0":
            break
    assert float(values['vtexport_visual_tokens_total{plan="prunesid-16"}']) >= 16
    assert values["vtexport_waiting"] == values["vtexport_running"] == "0"
    for stage in ("queue", "preprocess", "vision", "prune", "prefill", "first_token", "decode", "total"):
        count = values[f'vtexport_stage_seconds_count{{stage="{stage}"}}']
        assert values[f'vtexport_stage_seconds_bucket{{stage="{stage}",le="+Inf"}}'] == count
    assert float(values['vtexport_requests_total{route="/v1/chat/completions",status="200"}']) >= 1


def test_a_defect_says_nothing_of_itself(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = server.worker._pipeline("prunesid-16")

    def fails(*arguments: Any, **options: Any) -> Any:
        raise KeyError("/home/someone/secret")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "stream", fails)
        status, said, _ = ask(server, {"model": PRUNED, "messages": about("x?")})
    assert (status, said["error"]["type"]) == (500, "server_error")
    assert "secret" not in json.dumps(said)
    assert "KeyError: '/home/someone/secret'" in capsys.readouterr().err
    assert ask(server, {"model": PRUNED, "messages": about("x?"), "max_tokens": 1})[0] == 200


def test_a_defect_in_the_middle_of_a_stream(
    server: Server, client: OpenAI, monkeypatch: pytest.MonkeyPatch, frames: list[np.ndarray]
) -> None:
    pipeline = server.worker._pipeline("prunesid-16")

    def fails(*arguments: Any) -> Any:
        raise RuntimeError("gone")

    monkeypatch.setattr(pipeline.stages, "decode", fails)
    stream = client.chat.completions.create(model=PRUNED, messages=about("x?", frames[0]), stream=True)
    with pytest.raises(openai.APIError, match="the server could not answer this request"):
        list(stream)


def test_image_part_has_one_form(client: OpenAI, frames: list[np.ndarray]) -> None:
    part: Any = {**image_part(frames[0]), "text": "x"}
    with pytest.raises(openai.BadRequestError, match="is not of the form"):
        client.chat.completions.create(model=PRUNED, messages=[{"role": "user", "content": [part]}])
