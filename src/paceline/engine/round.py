"""The round: draft, verify, accept, commit, as one program over fixed shapes.

    open the window       today's page tables; root (last committed token), then the draft that
                          waits in the slots
    target forward        one pass over [B, W]
    judge                 logits to distribution to tokens; the rule alone accepts a token
    settle                cut at the end of the sequence and at the limit; tokens, length += n
    outbox                the host may read the tokens while drafting goes on
    observe, propose      the next draft, left in the slots

Reads nothing back to the host. Plain decoding is the same function with k = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from paceline.drafters.base import Drafter
from paceline.engine.catch_up import FRESH
from paceline.engine.slots import Batch, Slots
from paceline.kv.pools import KVPool
from paceline.models.decoder import Decoder
from paceline.speculation.choose import Chooser, ReferenceChooser, Terms
from paceline.speculation.proposal import ProposalDraw
from paceline.speculation.sampling import History, reported, top_logprobs
from paceline.speculation.verify import Rule
from paceline.types import SamplingFlags, TargetOut, Verdict, Window


@dataclass(frozen=True, slots=True)
class Machine:
    """What every round works on: the models, the rule, the state they share, and who draws."""

    target: Decoder
    pool: KVPool
    drafter: Drafter
    rule: Rule
    slots: Slots
    chooser: Chooser = field(default_factory=ReferenceChooser)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the host decides before a round, from what it knew before the round's tokens.

    batch: the rows and their constants; bounds: see `Window`; flags: stages some row needs; k:
    draft tokens the window holds at most; next_k: draft tokens to propose for the next round.
    """

    batch: Batch
    bounds: tuple[int, ...]
    flags: SamplingFlags
    k: int
    next_k: int


def run_round(machine: Machine, plan: Plan, outbox: Callable[[Verdict], None]) -> None:
    """Verify the waiting draft, commit what stands, and leave the next draft in the slots."""
    window, out, verdict = verify_and_commit(machine, plan)
    outbox(verdict)
    draft_after(machine, plan, window, out, verdict)


def verify_and_commit(machine: Machine, plan: Plan) -> tuple[Window, TargetOut, Verdict]:
    """The first half of a round: one target pass, one verdict, committed to the slots."""
    slots, target, batch = machine.slots, machine.target, plan.batch
    draft, window = slots.open_window(batch, plan.bounds, plan.k)
    hidden, features = target.forward(window, machine.pool, machine.drafter.needs.features)
    logits = target.head(hidden).view(*window.ids.shape, -1)  # [B, W, V]

    history, penalties = None, plan.flags.penalties
    if penalties:
        index = batch.index
        history = History(slots.prompt_seen[index], slots.counts[index], window.ids, None)
    mask = slots.masks[batch.index, : plan.k + 1] if plan.flags.mask else None
    terms = Terms(machine.rule, batch.sampling, plan.flags, batch.seed, mask)
    judged = machine.chooser.judge(terms, logits, draft, window.position, history)

    verdict = slots.settle(batch, draft, judged, penalties)
    if plan.flags.logprobs >= 0:
        most, told = min(plan.flags.logprobs, logits.shape[-1]), logits
        if judged.scores is not None:
            told = reported(logits, judged.scores, batch.sampling)
        verdict = replace(verdict, logprobs=top_logprobs(told, judged.tokens, most))
    return window, TargetOut(logits, features), verdict


def draft_after(
    machine: Machine, plan: Plan, window: Window, out: TargetOut, verdict: Verdict
) -> None:
    """The second half: what the drafter must see of the window, and the next draft."""
    if machine.drafter.needs.catch_up == "observe":
        rows = machine.slots.rows(plan.batch, plan.bounds, plan.k + 1, fresh=1)
        machine.drafter.observe(window, out, verdict, rows)
    if plan.next_k:
        draft_next(machine, plan, committed=plan.k + 1)


def draft_next(machine: Machine, plan: Plan, committed: int) -> None:
    """Propose plan.next_k tokens a row and leave them in the slots.

    committed: tokens, at most, since the last proposal; all but one of them it proposed itself.
    Also run once after prefill, so that a request's first round verifies a whole window.
    """
    slots, batch = machine.slots, plan.batch
    index = batch.index
    rows = slots.rows(batch, plan.bounds, committed, FRESH)
    penalties = plan.flags.penalties
    draw = ProposalDraw(
        chooser=machine.chooser,
        terms=Terms(machine.rule, batch.sampling, plan.flags, batch.seed),
        length=rows.length,
        prompt_seen=slots.prompt_seen[index] if penalties else None,
        counts=slots.counts[index] if penalties else None,
    )
    slots.keep_draft(batch, machine.drafter.propose(rows, plan.next_k, draw))
