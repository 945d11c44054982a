"""Log-probabilities of what a token was drawn from, beside the model's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.engine.tools import Case, Pair, joined, prompt

from paceline import Engine, RequestError, SamplingParams, sampling_params

ORACLE = Path(__file__).parents[1] / "speculation"
BASE = SamplingParams(max_tokens=24, ignore_eos=True, seed=3, logprobs=4, processed_logprobs=True)
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.7},
    "truncated": {"temperature": 1.3, "top_k": 40, "top_p": 0.8, "min_p": 0.01},
    "three are left": {"temperature": 1.0, "top_k": 3},
    "penalties": {"temperature": 0.9, "repetition_penalty": 1.4, "presence_penalty": 0.5,
                  "frequency_penalty": 0.3},
    "biases": {"temperature": 1.0, "logit_bias": ((65, 4.0), (66, -100.0))},
    "greedy, biased": {"logit_bias": ((65, 1.0),)},
}  # fmt: skip


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ORACLE))
    import oracle

    return oracle


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("k", [0, 4])
def test_they_are_of_the_distribution(
    kind: str, k: int, opened: Callable[..., Engine], pair: Pair, oracle: Any
) -> None:
    """Reckoned anew for each token from the model's logits alone."""
    engine, ids = opened(draft=pair.other, k=4), prompt(7)
    params = replace(BASE, **KINDS[kind])
    found = joined(list(engine.stream(ids, params, k=k)))
    raw = engine.score([*ids, *found.token_ids])
    names = {"repetition_penalty": "repetition", "presence_penalty": "presence",
             "frequency_penalty": "frequency", "logit_bias": "bias"}  # fmt: skip
    options = {"temperature": 0.0} | {names.get(n, n): v for n, v in KINDS[kind].items()}
    options |= {"bias": dict(options.get("bias", ()))}
    for place, item in enumerate(found.logprobs):
        logits = raw[len(ids) - 1 + place].tolist()
        law = oracle.distribution(logits, ids, found.token_ids[:place], **options)
        assert item.token_id == found.token_ids[place]
        assert item.logprob == pytest.approx(math.log(law[item.token_id]), abs=1e-6)
        ranked = sorted((p for p in law if p > 0), reverse=True)[:4]
        assert [math.exp(value) for _, value in item.top] == pytest.approx(ranked, rel=1e-6)
        assert all(law[token] > 0 for token, _ in item.top)


def test_rows_of_both_kinds_side_by_side(opened: Callable[..., Engine], pair: Pair) -> None:
    """Who asks for the model's own has them, whoever stands beside; the text is the same."""
    engine = opened(draft=pair.other, k=4, slots=3)
    warm = replace(BASE, temperature=0.8, top_k=7)
    cases = [
        Case(prompt(1), warm),
        Case(prompt(1), replace(warm, processed_logprobs=False)),
        Case(prompt(2), replace(BASE, logprobs=None, temperature=0.8)),
    ]
    alone = [engine.generate([case.prompt], case.params)[0] for case in cases]
    handles = [engine.submit(case.prompt, case.params) for case in cases]
    together = [joined(list(handle.events())) for handle in handles]
    for one, other in zip(alone, together, strict=True):
        assert other.token_ids == one.token_ids
    assert together[0].token_ids == together[1].token_ids
    raw = engine.score([*prompt(1), *together[1].token_ids]).log_softmax(-1)
    for place, (mine, own) in enumerate(
        zip(together[0].logprobs, together[1].logprobs, strict=True)
    ):
        expected = float(raw[len(prompt(1)) - 1 + place, own.token_id])
        assert own.logprob == pytest.approx(expected, abs=1e-6)
        assert mine.logprob != pytest.approx(own.logprob, abs=1e-6)
    assert not together[2].logprobs


@pytest.mark.parametrize("rule", ["reject", "block"])
def test_with_the_other_rules(rule: str, opened: Callable[..., Engine], pair: Pair) -> None:
    engine = opened(draft=pair.other, k=3, rule=rule)
    (done,) = engine.generate([prompt(4)], replace(BASE, temperature=0.9, top_k=5, logprobs=6))
    for item in done.logprobs or ():
        assert len(item.top) == 5  # nothing else can come
        assert sum(math.exp(value) for _, value in item.top) == pytest.approx(1)
        assert item.logprob == dict(item.top)[item.token_id]
    assert len(done.logprobs or ()) == 24


def test_a_bad_value_is_named() -> None:
    with pytest.raises(RequestError, match="processed_logprobs must be true or false"):
        sampling_params(processed_logprobs="yes")
