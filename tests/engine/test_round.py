"""A round reads nothing back: what a captured graph may not do, it does not do on a CPU either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import NoHostRead
from tests.engine.tools import EVERYTHING, Pair, prompt, readable

from paceline import Engine, SamplingParams
from paceline.engine.round import draft_after, verify_and_commit
from paceline.types import Verdict

PLAIN = SamplingParams(max_tokens=40, ignore_eos=True)
KINDS = {
    "greedy": [PLAIN, PLAIN],
    "mixed": [PLAIN, replace(readable(EVERYTHING), logit_bias=((65, 3.0),), stop_token_ids=(3,))],
    "everything": [replace(EVERYTHING, seed=1), EVERYTHING, replace(PLAIN, logprobs=5)],
}


def running(engine: Engine, step: Callable[[], None], kind: str) -> list[Any]:
    """Streams whose prompts have been read, and that have been through a round."""
    streams = [engine.stream(prompt(n), params) for n, params in enumerate(KINDS[kind])]
    while len(engine._loop.scheduler.running) < len(streams):
        step()
    step()
    return streams


@pytest.mark.parametrize("rule", ["match", "reject", "block"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drafter", ["ngram:min=1", "model", "predicted+ngram+model", "none"])
def test_a_round_reads_nothing(
    rule: str, kind: str, drafter: str, pair: Pair, opened: Callable[..., Engine]
) -> None:
    engine = opened(drafter=drafter.replace("model", f"model:path={pair.other}"), rule=rule, k=3)
    with engine._driver.held() as step:
        streams = running(engine, step, kind)
        loop = engine._loop
        for _ in range(2):
            sequences = loop.scheduler.running
            k = max(sequence.k for sequence in sequences)
            for grant in loop.scheduler.reserve(sequences, loop.reach):
                loop._grant(grant)
            plan = loop._make_plan(sequences, k, k)
            loop.scheduler.launched(sequences, k + 1)
            with torch.inference_mode(), NoHostRead() as mode:
                window, out, verdict = verify_and_commit(loop.machine, plan)
                draft_after(loop.machine, plan, window, out, verdict)
            assert mode.calls > 50
            assert window.ids.shape == (len(streams), plan.k + 1)
            for row, (sequence, n) in enumerate(zip(sequences, verdict.n.tolist(), strict=True)):
                loop.scheduler.settled(sequence, verdict.tokens[row, :n].tolist())


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
        lambda x: x.numpy(),
        lambda x: x.cpu(),
        lambda x: x.new_tensor([1, 2]),
        lambda x: torch.tensor([1, 2]),
        lambda x: int(x),
        lambda x: bool(x > 0),
        lambda x: torch.where(x > 0)[0],
        lambda x: x.unique(),
        lambda x: x.masked_select(x > 0),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x.__setitem__(x.long() * 0, 2.0),
    ],
)
def test_the_mode_sees_reads(read: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(AssertionError, match=r"(reads|copies to) the device"), NoHostRead():
        read(torch.ones(1))


def test_the_mode_lets_pass_what_can_be_recorded() -> None:
    x = torch.ones(3)
    with NoHostRead() as mode:
        x[1:2] = 5.0
        x[torch.zeros_like(x, dtype=torch.int64)] = x.clone()
        x.index_fill_(0, torch.arange(2), 3)
        x.masked_fill_(x > 2, 0)
    assert mode.calls > 4


def test_an_idle_row_commits_nothing(pair: Pair, opened: Callable[..., Engine]) -> None:
    """A row that was released while its round was planned: no token, no length, no count."""
    engine = opened(draft=pair.target, k=3)
    with engine._driver.held() as step:
        streams = running(engine, step, "greedy")
        loop, slots = engine._loop, engine._loop.machine.slots
        plan = loop._make_plan(loop.scheduler.running, 3, 3)
        before = slots.tokens.clone(), slots.length.clone()
        with torch.inference_mode():
            slots.release(1)
            verdict: Verdict = verify_and_commit(loop.machine, plan)[2]
        assert verdict.n.tolist()[0] == 0
        assert verdict.n.tolist()[1] > 0
        assert torch.equal(slots.tokens[1], before[0][1])
        assert slots.length[1] == before[1][1]
        assert len(streams) == 2
