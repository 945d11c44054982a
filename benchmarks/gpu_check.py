"""Part `check` of `gpu_round.py`: ordinary random weights in the engine's own recorded rounds, held
against transformers, and speculative text against plain text.

Two engines hold the same target. One has the draft model (here as random as the target, so it is
nearly always rejected), one replays the plain text with a fifth of it spoiled, so that windows are
accepted as with a good draft. Logits are tapped where a round judges them, by position, so they
are those that the recorded rounds used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gpu_common import (
    Bench,
    digits,
    first_difference,
    fixed,
    free,
    open_engine,
    prompts,
    quiesce,
    say,
)
from gpu_weights import randomize, transformers_model
from torch import Tensor

from paceline import Engine
from paceline.drafters.replay import ReplayDrafter, ReplayOptions
from paceline.engine import build as engine_module
from paceline.speculation.choose import Chooser, Judgement, Terms
from paceline.speculation.sampling import History
from paceline.types import Draft, SamplingParams

PLACES = 1024  # positions whose logits are kept; a text is far shorter
_LISTED = 20  # differences that are written out


class Tap:
    """A chooser that also keeps the logits it judges, by position, for a single row."""

    def __init__(self, inner: Chooser) -> None:
        self._inner = inner
        self.kept: Tensor | None = None  # [PLACES, V]

    def judge(
        self, terms: Terms, logits: Tensor, draft: Draft, position: Tensor, history: History | None
    ) -> Judgement:
        rows = logits.reshape(-1, logits.shape[-1])
        if self.kept is None:
            self.kept = rows.new_zeros(PLACES, rows.shape[1])
        # A draft row that is rejected is written again, by the next window, with what was used.
        self.kept.index_copy_(0, position.reshape(-1) % PLACES, rows)
        return self._inner.judge(terms, logits, draft, position, history)

    def propose(self, *args: Any, **more: Any) -> tuple[Tensor, Tensor | None]:
        return self._inner.propose(*args, **more)

    def read(self, first: int, count: int) -> Tensor:
        """The logits [count, V] of positions from `first`, in float32 at least."""
        assert self.kept is not None
        place = torch.arange(first, first + count, device=self.kept.device) % PLACES
        return self.kept[place]


@contextmanager
def _tapped() -> Iterator[list[Tap]]:
    """Engines opened meanwhile choose through a Tap, which is then in their recorded rounds."""
    taps: list[Tap] = []
    original = engine_module.make_chooser

    def make(device: torch.device) -> Tap:
        taps.append(Tap(original(device)))
        return taps[-1]

    engine_module.make_chooser = make  # type: ignore[assignment]
    try:
        yield taps
    finally:
        engine_module.make_chooser = original


def check(bench: Bench) -> dict[str, Any]:
    """Logits against transformers at each context; texts against plain texts."""
    o = bench.options
    longest = max(*o.check_contexts, o.prompt_tokens) + max(o.check_tokens, o.text_tokens) + 16
    room = {"slots": 1, "max_length": longest}
    if not bench.cuda:
        room["dtype"] = "float64"  # elsewhere weights are packed, and cannot be written in place
    known: dict[tuple[int, ...], list[int]] = {}
    replay = ReplayDrafter(ReplayOptions(error=0.2), answers={})
    replay._answers = known  # type: ignore[assignment]
    with _tapped() as taps:
        pair = open_engine(bench, o.k, **room)
        guided = open_engine(bench, o.k, drafter=replay, **room)
    for engine in (pair, guided):
        drawn = randomize(engine._loop.machine.target, seed=11)
    randomize(pair._loop.machine.drafter._model, seed=12)
    say(f"  {drawn / 1e9:.2f} billion parameters drawn anew in both engines")
    engines = {"pair": pair, "guided": guided}
    result: dict[str, Any] = {"k": o.k, "std": 0.02, "logits": {}}
    texts = [_texts(bench, engines, known, temperature) for temperature in (0.0, 0.8)]
    result["texts"] = {"greedy": texts[0], "temperature 0.8": texts[1]}
    bench.keep(result)
    runs = []
    for number, context in enumerate(o.check_contexts):
        for ids in prompts(bench, max(1, 3 - number), context, seed=3):
            runs.append(_teacher(bench, engines, taps, known, ids))
    say(f"  {len(runs)} texts with their logits")
    reference = transformers_model(o.target, pair._loop.machine.target)
    del engines, pair, guided, engine, taps
    free(bench)
    _compare_with(reference, runs, "transformers")
    if bench.cuda:
        _compare_with(reference.float(), runs, "float32")
    del reference
    for context in o.check_contexts:
        chosen = [run for run in runs if run["context"] == context]
        result["logits"][str(context)] = _verdict(chosen, "float32" if bench.cuda else None)
        say(f"  context {context}: {result['logits'][str(context)]['summary']}")
    result["summary"] = {
        "texts": {n: [t["identical"], t["of"], t["tokens_compared"]]
                  for n, t in result["texts"].items()},
        "logits": {c: r["summary"] for c, r in result["logits"].items()},
    }  # fmt: skip
    return result


def _write(engine: Engine, ids: list[int], params: SamplingParams, k: int) -> list[int]:
    return [token for event in engine.stream(ids, params, k=k) for token in event.token_ids]


# --- texts --------------------------------------------------------------------------------------


def _texts(
    bench: Bench,
    engines: dict[str, Engine],
    known: dict[tuple[int, ...], list[int]],
    temperature: float,
) -> dict[str, Any]:
    """Plain texts against those of both drafters."""
    o = bench.options
    same, compared_tokens, differ = 0, 0, []
    before = {name: _counts(engine) for name, engine in engines.items()}
    for number, ids in enumerate(prompts(bench, o.text_prompts, o.prompt_tokens, seed=5)):
        params = fixed(o.text_tokens, temperature=temperature, seed=100 + number)
        plain = _write(engines["pair"], ids, params, 0)
        known[tuple(ids)] = plain
        # The random draft is nearly always rejected: few of its rounds show what there is.
        for name in ("guided", "pair") if number < 2 else ("guided",):
            text = _write(engines[name], ids, params, o.k)
            place = first_difference(plain, text)
            same += place is None
            compared_tokens += len(text) if place is None else place + 1
            if place is not None:
                differ.append({"prompt": number, "engine": name, "place": place}
                              | _gap(engines["pair"], ids, plain, text, place))  # fmt: skip
    result = {
        "identical": same, "of": o.text_prompts + min(2, o.text_prompts),
        "tokens_compared": compared_tokens, "differences": differ[:_LISTED],
    }  # fmt: skip
    for name, engine in engines.items():
        accepted, evaluated = (b - a for a, b in zip(before[name], _counts(engine), strict=True))
        result[f"{name}_acceptance"] = digits(accepted / max(1, evaluated), 3)
    say(f"  temperature {temperature}: {same} of {result['of']} texts are the plain one")
    return result


def _counts(engine: Engine) -> tuple[int, int]:
    quiesce(engine)
    return engine.stats().accepted, engine.stats().evaluated


def _gap(
    engine: Engine, ids: list[int], plain: list[int], text: list[int], place: int
) -> dict[str, Any]:
    """How far apart the two tokens' logits are where texts part."""
    if place >= min(len(plain), len(text)):
        return {"logit_gap": None}
    logits = engine.score([*ids, *plain[:place]])[-1]
    return {"logit_gap": digits((logits[plain[place]] - logits[text[place]]).abs().item())}


# --- logits -------------------------------------------------------------------------------------


def _teacher(
    bench: Bench,
    engines: dict[str, Engine],
    taps: list[Tap],
    known: dict[tuple[int, ...], list[int]],
    ids: list[int],
) -> dict[str, Any]:
    """One prompt's plain text, and its logits by single rows, by verify windows, by prefill."""
    o = bench.options
    count, first = o.check_tokens, len(ids) - 1
    params = fixed(count)
    text = _write(engines["pair"], ids, params, 0)
    logits = {"single": taps[0].read(first, count)}
    known[tuple(ids)] = text
    guided = _write(engines["guided"], ids, params, o.k)
    place = first_difference(text, guided)
    # Behind the first difference the windows hold another text.
    same = count if place is None else place + 1
    logits["window"] = taps[1].read(first, same)
    with torch.inference_mode():
        scored = engines["pair"].score([*ids, *text[:-1]])
        logits["prefill"] = scored[first:].clone()
    del scored
    return {
        "context": len(ids), "ids": [*ids, *text[:-1]], "count": count, "first_difference": place,
        "logits": logits,
    }  # fmt: skip


@torch.inference_mode()
def _compare_with(model: Any, runs: list[dict[str, Any]], name: str) -> None:
    """Add transformers' logits of each text to it."""
    device = next(model.parameters()).device
    for run in runs:
        ids = torch.tensor([run["ids"]], device=device)
        out = model(ids, use_cache=False, logits_to_keep=run["count"]).logits[0]
        run["logits"][name] = out if out.dtype is torch.float64 else out.float()


def _verdict(runs: list[dict[str, Any]], truth: str | None) -> dict[str, Any]:
    """Every form's logits against transformers in the same dtype, and against the truth."""
    result: dict[str, Any] = {"texts": len(runs), "positions": sum(r["count"] for r in runs)}
    forms = ("single", "window", "prefill")
    pairs = [(form, "transformers") for form in forms]
    if truth is not None:
        pairs += [(form, truth) for form in (*forms, "transformers")]
    pairs += [("window", "single"), ("prefill", "single")]
    for ours, theirs in pairs:
        result[f"{ours} / {theirs}"] = _distance(runs, ours, theirs)
    result["first_differences"] = [r["first_difference"] for r in runs]
    against = truth or "transformers"
    result["summary"] = {
        form: [r["relative_error"], r["argmax_agree"], r["positions"]]
        for form in (*forms, "transformers")
        if (r := result.get(f"{form} / {against}")) is not None
    } | {"window rows bit-identical to single": result["window / single"]["identical_rows"]}
    return result


def _distance(runs: list[dict[str, Any]], ours: str, theirs: str) -> dict[str, Any]:
    square, whole, worst, agree, identical, positions = 0.0, 0.0, 0.0, 0, 0, 0
    flips = []
    for number, run in enumerate(runs):
        a, b = run["logits"][ours], run["logits"][theirs]
        rows = min(len(a), len(b))
        a, b = a[:rows].double(), b[:rows].double()
        apart, size = (a - b).norm(dim=1), b.norm(dim=1)
        square += apart.square().sum().item()
        whole += size.square().sum().item()
        worst = max(worst, (apart / size).max().item())
        mine, other = a.argmax(1), b.argmax(1)
        agree += int((mine == other).sum())
        identical += int((a == b).all(1).sum())
        positions += rows
        for row in (mine != other).nonzero().flatten().tolist():
            margin = (b[row, other[row]] - b[row, mine[row]]).item()
            flips.append({"text": number, "row": row, "margin": digits(margin, 3)})
    flips.sort(key=lambda flip: -flip["margin"])
    return {
        "relative_error": digits((square / whole) ** 0.5, 4),
        "worst_row": digits(worst, 4),
        "argmax_agree": agree,
        "identical_rows": identical,
        "positions": positions,
        "flips": len(flips),
        "widest_flips": flips[:_LISTED],
    }
