"""Contestants and loads as they are written, and what is said of those that are not."""

from __future__ import annotations

import pytest

from paceline import ConfigError
from paceline.lab.bench_record import Load
from paceline.lab.bench_spec import (
    engine_config,
    parse_contestant,
    parse_contestants,
    parse_load,
)

SHARED = {"target": "T", "draft": "D", "dtype": "float32"}


def test_paceline_is_any_drafter_k_and_rule_over_one_family() -> None:
    specs = ["paceline", "paceline:plain", "paceline:adaptive", "paceline:k=4,rule=block",
             "paceline:drafter=(ngram:max=6,min=2),label=n"]  # fmt: skip
    default, plain, adaptive, block, ngram = parse_contestants(specs, SHARED)
    assert len({c.family for c in (default, plain, adaptive, block, ngram)}) == 1
    assert (default.drafter, default.draft, default.k, default.rule) == ("model", "D", 5, "match")
    assert (plain.plain, plain.drafter, plain.draft, plain.k) == (True, "none", None, 0)
    assert (default.adaptive, adaptive.adaptive) == (False, True)
    assert (block.k, block.rule) == (4, "block")
    assert (ngram.name, ngram.drafter) == ("n", "ngram:max=6,min=2")
    assert engine_config(default)["dtype"] == "float32"
    assert engine_config(parse_contestant("paceline:threads=2,prefix_cache=false", SHARED)) == {
        "target": "T", "draft": "D", "drafter": "model", "k": 5, "rule": "match",
        "adaptive": False, "dtype": "float32", "threads": 2, "prefix_cache": False,
        "device": "cpu",
    }  # fmt: skip


def test_transformers_is_plain_assisted_or_lookup() -> None:
    plain, assisted, lookup = parse_contestants(
        ["transformers", "transformers:assisted,k=5", "transformers:lookup"], SHARED
    )
    assert (plain.plain, plain.draft, plain.k) == (True, None, 0)
    assert (assisted.draft, assisted.k, assisted.family) == ("D", 5, plain.family)
    assert (lookup.drafter, lookup.k) == ("ngram", 10)


def test_an_address_keeps_its_key_to_itself() -> None:
    c = parse_contestant(
        'url:http://h:8000/v1/,model=m,key-env=KEY,body.speculative={"enabled": false, "k": 1}', {}
    )
    assert (c.model, c.options["url"], c.options["key-env"]) == ("m", "http://h:8000/v1", "KEY")
    assert c.options["body.speculative"] == '{"enabled": false, "k": 1}'
    with pytest.raises(ConfigError, match="key-env") as told:
        parse_contestant("url:http://user:secret@h/v1", {})
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("pacelin", "did you mean 'paceline'"),
        ("paceline:adaptiv", "did you mean 'adaptive'"),
        ("paceline:kk=4", "did you mean 'k'"),
        ("paceline:k=four", "whole number"),
        ("paceline:k=99", "from 0 to"),
        ("paceline:rule=lossy", "rule must be"),
        ("paceline:drafter=none", "drafts nothing"),
        ("paceline:plain,drafter=ngram", "has no drafter"),
        ("paceline:drafter=(ngram", "not closed"),
        ("paceline:k=1,k=2", "twice"),
        ("transformers:assisted,lookup", "choose one"),
        ("transformers:k=3", "plain decoding has no k"),
        ("url:localhost:8000", "url:http://host"),
        ("url:http://h/v1,api=grpc", "chat or completions"),
        ("url:http://h/v1,body.x={", "not closed"),
        ("url:http://h/v1,body.x=nope", "must be JSON"),
        ("url:http://h/v1,modle=m", "did you mean 'model'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(spec: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as told:
        parse_contestant(spec, SHARED)
    assert "\n" not in str(told.value)


def test_names_and_plain_decodings_are_unique() -> None:
    with pytest.raises(ConfigError, match="there twice"):
        parse_contestants(["paceline", "paceline"], SHARED)
    with pytest.raises(ConfigError, match="both plain"):
        parse_contestants(["paceline:plain", "paceline:plain,k=0,label=b"], SHARED)
    parse_contestants(["paceline:plain", "paceline:plain,label=b,family=other"], SHARED)
    with pytest.raises(ConfigError, match="needs a draft"):
        parse_contestant("transformers:assisted", {"target": "T"})


def test_loads() -> None:
    assert parse_load("closed:8") == Load(concurrency=8)
    assert parse_load("poisson:0.5") == Load("poisson", rate=0.5)
    assert (parse_load("replay"), parse_load("replay:4")) == (
        Load("replay", speed=1.0), Load("replay", speed=4.0)
    )  # fmt: skip
    for text in ("closed:0", "closed:1.5", "poisson", "poisson:x", "tide:3", "poisson:inf"):
        with pytest.raises(ConfigError, match="load"):
            parse_load(text)


def test_without_a_device_every_engine_has_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = ["paceline", "transformers:plain", "transformers:lookup,device=cpu,label=c"]
    assert [c.options.get("device") for c in parse_contestants(specs, SHARED)] == [
        None,
        None,
        "cpu",
    ]
    monkeypatch.setattr("paceline.config.choose", lambda dtype: "cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    made = parse_contestants(specs, SHARED | {"device": "auto"})
    assert [c.options["device"] for c in made] == ["cuda", "cuda", "cpu"]
    assert engine_config(made[0])["device"] == "cuda"
    assert "cuda" in made[0].family
