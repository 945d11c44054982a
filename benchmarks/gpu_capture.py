"""Part `capture` of `gpu_round.py`: recorded rounds against the same rounds run eagerly.

The bundled pair, requests of all kinds side by side that come and go, some dropped half way; the
same requests in recorded and in eager engines, every token compared.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from gpu_common import Bench, digits, first_difference, say, steer
from gpu_speed import mini_prompts

from paceline import Engine, Event, SamplingParams
from paceline.engine.fixed import FixedK

SIDE_BY_SIDE = 6
K = 5


def capture(bench: Bench) -> dict[str, Any]:
    """The recorded engine over all requests, and beside it eager ones in processes of their own,
    each over a share of the same requests."""
    o = bench.options
    numbers, device = range(o.capture_requests), str(bench.device)
    with ProcessPoolExecutor(o.eager_shares, get_context("spawn")) as pool:
        shares = [numbers[i :: o.eager_shares] for i in range(o.eager_shares)]
        waiting = [pool.submit(_run, device, False, share) for share in shares]
        recorded, rounds = _run(device, True, numbers)
        say(f"  recorded: {rounds} rounds, {len(recorded)} requests")
        eager, eager_rounds = dict[int, _Text](), 0
        for share in waiting:
            texts, count = share.result()
            eager |= texts
            eager_rounds += count
    say(f"  eager: {eager_rounds} rounds")
    differ, tokens, shapes, logprobs, worst = [], 0, 0, 0, 0.0
    for number in numbers:
        a, b = recorded[number], eager[number]
        cancelled = _request(number)[3] is not None
        place = first_difference(a.ids, b.ids)
        if cancelled and place == min(len(a.ids), len(b.ids)):
            place = None  # dropped after the same number of events, of other sizes
        tokens += min(len(a.ids), len(b.ids))
        shapes += a.sizes == b.sizes
        if place is not None:
            differ.append({"request": number, "place": place, "params": repr(_request(number)[1])})
        elif a.logprobs:
            pairs = list(zip(a.logprobs, b.logprobs, strict=False))
            logprobs += len(pairs)
            worst = max([worst, *(abs(x - y) for x, y in pairs)])
    return {
        "identical": not differ,
        "rounds_recorded": rounds,
        "rounds_eager": eager_rounds,
        "requests": len(numbers),
        "tokens_compared": tokens,
        "requests_with_the_same_rounds": shapes,
        "logprobs_compared": logprobs,
        "largest_logprob_difference": digits(worst, 3),
        "differing": len(differ),
        "differences": differ[:10],
    }


class _Text:
    """What came of one request."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.sizes: list[int] = []
        self.logprobs: list[float] = []

    def add(self, event: Event) -> None:
        self.ids += event.token_ids
        self.sizes.append(len(event.token_ids))
        self.logprobs += [entry.logprob for entry in event.logprobs or ()]


def _run(device: str, recorded: bool, numbers: Sequence[int]) -> tuple[dict[int, _Text], int]:
    """Write the requests' texts, some side by side; and how many rounds that took."""
    options: dict[str, Any] = {"threads": 1} if device == "cpu" else {}
    began = time.perf_counter()
    engine = Engine(
        "mini-target", draft="mini-draft", device=device, capture=recorded, k=K,
        slots=SIDE_BY_SIDE, max_length=1024, seed=1, **options,
    )  # fmt: skip
    steer(engine, FixedK(K))  # of the widths there are, those that the requests ask for
    say(f"  opened in {time.perf_counter() - began:.1f} s")
    prompts, texts = mini_prompts(), dict[int, _Text]()
    running: list[tuple[int, Iterator[Event], int | None]] = []
    with engine:
        while running or len(texts) < len(numbers):
            while len(running) < SIDE_BY_SIDE and len(texts) < len(numbers):
                number = numbers[len(texts)]
                place, params, k, drop = _request(number)
                ids = engine.tokenizer.encode(prompts[place % len(prompts)])[-300:]
                texts[number] = _Text()
                running.append((number, engine.stream(ids, params, k=k), drop))
            for entry in list(running):
                number, events, drop = entry
                event = next(events, None)
                if event is not None:
                    texts[number].add(event)
                if event is None or len(texts[number].sizes) == drop:
                    events.close()  # type: ignore[attr-defined]
                    running.remove(entry)
        counted = engine.stats().rounds
    return texts, counted


def _request(number: int) -> tuple[int, SamplingParams, int, int | None]:
    """Request `number`: which prompt, its parameters, its K, and after how many events it is
    dropped."""
    draw = random.Random(number)
    pick = draw.choice
    most = draw.randrange(16, 200)
    params = SamplingParams(
        temperature=pick((0.0, 0.0, 0.7, 1.0, 1.3)),
        top_k=pick((0, 0, 5, 50)),
        top_p=pick((1.0, 1.0, 0.9, 0.5)),
        min_p=pick((0.0, 0.0, 0.05)),
        repetition_penalty=pick((1.0, 1.0, 1.0, 1.1)),
        presence_penalty=pick((0.0, 0.0, 0.5)),
        frequency_penalty=pick((0.0, 0.0, 0.3)),
        logit_bias=tuple(
            (draw.randrange(300, 8000), draw.uniform(-4, 2)) for _ in range(pick((0, 0, 3)))
        ),
        seed=draw.randrange(1 << 40),
        max_tokens=most,
        min_tokens=pick((0, 0, 12)),
        stop_token_ids=tuple(draw.randrange(300, 8000) for _ in range(pick((0, 0, 8)))),
        ignore_eos=pick((True, False)),
        logprobs=pick((None, None, None, 0, 5, 20)),
    )
    drop = draw.randrange(2, 10) if draw.random() < 0.1 else None
    return draw.randrange(1 << 20), params, pick((0, 1, 3, 5, 5, 5)), drop
