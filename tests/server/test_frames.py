"""A spliced frame is what the whole chunk would be, byte for byte."""

from __future__ import annotations

import json

import pytest

from paceline.server.frames import Frames, frame


@pytest.mark.parametrize("told", [{}, {"paceline": {"seconds": 0.25, "round": None}}])
@pytest.mark.parametrize("after", [{}, {"usage": None}])
@pytest.mark.parametrize("text", ["", 'a"\\\n\x00', "日本 é 🦊", '"choices":['])
def test_the_same_bytes(text: str, after: dict[str, object], told: dict[str, object]) -> None:
    empty: dict[str, object] = {"id": "x", "model": '"choices":[é', "choices": [], "end": "fp"}
    choice: dict[str, object] = {"text": text, "index": 3, "logprobs": [-0.5, None]}
    chunk = empty | {"choices": [choice]} | told | after
    dumped = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    wanted = f"data: {dumped}\n\n".encode()
    assert Frames(empty, after).choice(choice, told) == wanted == frame(chunk)


def test_small_numbers_are_those_that_were_written() -> None:
    """Not to the byte what json.dumps makes, which writes 1e-06."""
    chunk = {"choices": [], "logprob": [1e-06, -1.25e-05, -3.5e-10, 1e22, -0.0]}
    data = frame(chunk)
    assert json.loads(data.removeprefix(b"data: ")) == chunk


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_leaves_the_json_whole(number: float) -> None:
    assert frame({"logprob": number}) == b'data: {"logprob":null}\n\n'
