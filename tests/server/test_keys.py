"""Keys: each costs the same to refuse, and none is in the log, wherever a client put it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.server.tools import PROMPT, Call

from paceline.server import border
from paceline.server.record import JsonLines, Lines

BODY: dict[str, Any] = {"model": "mini", "prompt": PROMPT, "max_tokens": 4, "seed": 7}


def test_every_key_costs_the_same_comparisons(
    app: Callable[..., Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests of one length, and always as many of them as there are keys, whoever asks."""
    compared: list[tuple[int, int]] = []
    real = border.hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(border.hmac, "compare_digest", counted)
    call = app(api_keys=("sk-first", "sk-second", "sk-third"))
    seen = set()
    for given in ("sk-first", "sk-third", "sk-firs", "sk-secone", "x", "", "sk-first" * 500):
        call("GET", "/v1/models", None, {"authorization": f"Bearer {given}"})
        seen.add(tuple(compared))
        compared.clear()
    call("GET", "/v1/models")
    seen.add(tuple(compared))
    assert seen == {((32, 32),) * 3}


@pytest.mark.parametrize("form", [JsonLines, Lines])
def test_a_key_in_the_wrong_place_is_struck_out(
    form: type[Lines], app: Callable[..., Call], caplog: pytest.LogCaptureFixture
) -> None:
    keys = ("sk-first", "sk-first-and-more", 'sk-"quoted"')
    call = app(api_keys=keys)
    caplog.set_level(logging.DEBUG)
    good = {"authorization": "Bearer sk-first"}
    call("GET", "/v1/models/sk-first-and-more", None, good)
    call("GET", "/v1/models/sk-%22quoted%22?key=sk-first", None, good)
    call(
        "POST", "/v1/completions", {**BODY, "model": "sk-first"}, {**good, "x-request-id": keys[0]}
    )
    call("POST", "/v1/completions", {**BODY, "user": "sk-first"}, {"authorization": "sk-first"})
    try:
        raise ValueError("Bearer sk-first is odd")
    except ValueError:
        logging.getLogger("paceline.server").exception("it failed with sk-first-and-more")
    ours = [record for record in caplog.records if record.name.startswith("paceline")]
    written = [form(keys).format(record) for record in ours]
    assert len(written) >= 5
    assert "***" in "".join(written)
    for line in written:
        assert not any(key in line for key in ("sk-first", "quoted", "and-more"))
        assert form is not JsonLines or json.loads(line)


def test_lines_for_the_eye(app: Callable[..., Call], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    app()("POST", "/v1/completions", BODY, {"x-request-id": "abc-2"})
    (record,) = (record for record in caplog.records if record.getMessage() == "request")
    line = Lines().format(record)
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z info request request_id=\"abc-2\" method=", line)
    assert " status=200 " in line
    assert "\n" not in line
