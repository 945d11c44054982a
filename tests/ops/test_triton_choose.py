"""Fused drawing and accepting against `speculation.choose`, to the token.

The noise is the reference's hash to the bit; its two logarithms may round otherwise, which could
turn a draw only where two tokens are as near as that: the seeds here meet no such draw.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from paceline.lab.audit_mutations import Mutant
from paceline.ops import triton_noise
from paceline.ops.choose import FusedChooser, _fuses, make_chooser
from paceline.speculation.choose import ReferenceChooser, Terms
from paceline.speculation.noise import GOLDEN, Stream, gumbel, keys, mix_
from paceline.speculation.sampling import History, SamplingTensors
from paceline.speculation.verify import RULES, Match
from paceline.types import Draft, SamplingFlags

# numpy, under the interpreter, warns of what a GPU computes silently.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

NATIVE = torch.cuda.is_available()
DEVICE = "cuda" if NATIVE else "cpu"
BLOCK = 128
REFERENCE = ReferenceChooser()

_key, _hashed, _gumbel = triton_noise.key, triton_noise.hashed, triton_noise.gumbel


@triton.jit
def noise_kernel(seeds, places, hashes, noises, V: tl.constexpr, NATIVE: tl.constexpr):
    row, token = tl.program_id(0), tl.arange(0, V)
    row_key = _key(tl.load(seeds + row), tl.load(places + row))
    tl.store(hashes + row * V + token, _hashed(row_key, token).to(tl.int64))
    tl.store(noises + row * V + token, _gumbel(row_key, token, NATIVE))


def kernel_noise(seeds: Tensor, places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The kernels' hashes and noise for each (seed, position), [R, size]."""
    full = 1 << (size - 1).bit_length()
    hashes = torch.empty(len(seeds), full, dtype=torch.int64, device=DEVICE)
    noises = torch.empty(len(seeds), full, device=DEVICE)
    noise_kernel[(len(seeds),)](seeds, places, hashes, noises, V=full, NATIVE=NATIVE)
    return hashes[:, :size], noises[:, :size]


def fused(block: int = BLOCK) -> FusedChooser:
    return FusedChooser(block=block, native=NATIVE)


ROWS: tuple[dict[str, Any], ...] = (
    {
        "temperature": 0.8,
        "bias": {0: 2.0, 3: 1.0, 200: 4.0},
        "stops": (5, 150),
        "until": 99,
        "min_p": 0.05,
        "top_k": 20,
        "repetition": 1.3,
    },
    {"temperature": 0.0, "bias": {7: 30.0}, "stops": (7,), "until": 12, "frequency": 0.5},
    {"temperature": 1.7, "top_p": 0.9, "presence": 0.4, "stops": (1,), "until": 0},
)


def parameters(rows: tuple[dict[str, Any], ...]) -> SamplingTensors:
    """float32, with lists longer than any row's."""

    def column(name: str, default: float) -> Tensor:
        return torch.tensor([row.get(name, default) for row in rows], device=DEVICE)

    ids = torch.zeros(len(rows), 5, dtype=torch.int64)
    values = torch.zeros(len(rows), 5)
    stops = torch.full((len(rows), 3), -1)
    for b, row in enumerate(rows):
        for n, (token, value) in enumerate(row.get("bias", {}).items()):
            ids[b, n], values[b, n] = token, value
        for n, token in enumerate(row.get("stops", ())):
            stops[b, n] = token
    return SamplingTensors(
        temperature=column("temperature", 1.0).float(),
        top_k=column("top_k", 0).long(),
        top_p=column("top_p", 1.0).float(),
        min_p=column("min_p", 0.0).float(),
        repetition=column("repetition", 1.0).float(),
        presence=column("presence", 0.0).float(),
        frequency=column("frequency", 0.0).float(),
        bias_ids=ids.to(DEVICE),
        bias_values=values.to(DEVICE),
        stop_ids=stops.to(DEVICE),
        min_position=column("until", 0).long(),
        processed=column("processed", 0).bool(),
    )


def make_terms(flags: SamplingFlags, rows: tuple[dict[str, Any], ...] = ROWS, rule: str = "match"):
    seeds = torch.tensor([-(2**62), 12345, 2**63 - 1, 7][: len(rows)], device=DEVICE)
    return Terms(RULES[rule], parameters(rows), flags, seeds)  # type: ignore[index]


def window(
    terms: Terms, logits: Tensor, history: History | None, wrong: tuple[int, ...]
) -> tuple[Draft, Tensor]:
    """Positions, and a draft that the rule accepts up to node wrong[b]; counts K, K − 1, ..."""
    batch, width, vocab = logits.shape
    position = torch.arange(width, device=DEVICE) + torch.arange(10, 10 + 5 * batch, 5)[:, None].to(
        DEVICE
    )
    node = torch.zeros(batch, width - 1, dtype=torch.int64, device=DEVICE)
    count = torch.arange(batch, device=DEVICE).neg().add(width - 1).clamp(min=0)
    draft = Draft(node, count, torch.zeros_like(count))
    for _ in range(width - 1):  # each pass gets one more node right
        judged = REFERENCE.judge(terms, logits, draft, position, history)
        node.copy_(judged.tokens[:, :-1])
        draft = replace(draft, count=torch.full_like(count, width - 1))
    for b, at in enumerate(wrong):
        if at < width - 1:
            node[b, at] = (node[b, at] + 1) % vocab
    return replace(draft, count=count), position


def random_logits(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, generator=generator) * 3
    logits[torch.rand(*shape, generator=generator) < 0.1] = -torch.inf
    logits[..., 0] = 0.0
    return logits.to(DEVICE)


def agree(
    chooser: FusedChooser,
    terms: Terms,
    logits: Tensor,
    draft: Draft,
    position: Tensor,
    history: History | None = None,
) -> None:
    """Assert that the kernels say of a window what the reference says."""
    before = logits.clone()
    want = REFERENCE.judge(terms, logits, draft, position, history)
    got = chooser.judge(terms, logits, draft, position, history)
    assert torch.equal(logits.nan_to_num(), before.nan_to_num()), "logits were written to"
    assert got.broken.dtype == torch.bool
    assert torch.equal(got.broken, want.broken)
    # What stands at a broken node is unspecified, and with it how far its row goes.
    whole = ~want.broken.any(1)
    for name in ("tokens", "accepted", "evaluated"):
        mine, theirs = getattr(got, name), getattr(want, name)
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine[whole], theirs[whole]), name
    assert bool(((got.tokens >= 0) & (got.tokens < logits.shape[2])).all())
    for first in (0, 3):
        length = position[:, 0] + 1 - first
        mine, scores = chooser.propose(terms, logits[:, :1], length, first, history)
        theirs, _ = REFERENCE.propose(terms, logits[:, :1], length, first, history)
        assert scores is None
        assert mine.dtype == torch.int64
        assert torch.equal(mine[~want.broken[:, 0]], theirs[~want.broken[:, 0]])


STAGES = {
    "greedy": SamplingFlags(),
    "draws": SamplingFlags(draws=True),
    "greedy, bias, minimum": SamplingFlags(bias=True, min_tokens=True),
    "draws, bias, minimum": SamplingFlags(draws=True, bias=True, min_tokens=True),
    "min-p": SamplingFlags(
        draws=True, truncation=True, top_k=False, top_p=False, bias=True, min_tokens=True
    ),
    "top-k, top-p": SamplingFlags(draws=True, truncation=True, bias=True),
    "penalties": SamplingFlags(penalties=True),
    "all": SamplingFlags(draws=True, penalties=True, bias=True, truncation=True, min_tokens=True),
}


@pytest.mark.parametrize("name", STAGES)
def test_kernels_equal_the_reference(name: str) -> None:
    flags, vocab = STAGES[name], 2 * BLOCK + 45
    terms, logits = make_terms(flags), random_logits(1, 3, 4, vocab)
    history = None
    if flags.penalties:
        counts = (torch.arange(3 * vocab).view(3, vocab) % 7 == 0).int().to(DEVICE)
        history = History(counts == 2, counts, torch.tensor([[3, 7, 3, 9]] * 3, device=DEVICE))
    draft, position = window(terms, logits, history, (2, 9, 0))
    agree(fused(), terms, logits, draft, position, history)


@pytest.mark.parametrize(
    ("batch", "width", "vocab"), [(1, 1, 1), (1, 1, 129), (2, 1, 128), (1, 9, 131), (4, 2, 77)]
)
def test_shapes(batch: int, width: int, vocab: int) -> None:
    rows = tuple({"temperature": 0.5 * b} for b in range(batch, 0, -1))
    terms = make_terms(SamplingFlags(draws=True), rows)
    logits = random_logits(batch + width, batch, width, vocab)
    draft, position = window(terms, logits, None, (width, 0, width, 0)[:batch])
    agree(fused(), terms, logits, draft, position)


def test_an_accepted_draft_ends_at_its_count() -> None:
    terms = make_terms(SamplingFlags(), ({}, {}, {}))
    logits = random_logits(5, 3, 4, 60)
    draft, position = window(terms, logits, None, (9, 9, 9))
    draft = replace(draft, count=torch.tensor([3, 1, 0], device=DEVICE))
    judged = fused().judge(terms, logits, draft, position, None)
    assert judged.accepted.tolist() == [3, 1, 0]
    assert judged.evaluated.tolist() == [3, 1, 0]
    agree(fused(), terms, logits, draft, position)


def test_the_lowest_of_equal_tokens_is_taken() -> None:
    terms = make_terms(SamplingFlags(draws=True), ({"temperature": 0.0}, {"temperature": 0.0}))
    logits = random_logits(6, 2, 2, 400).round()
    logits[0, :, 130] = logits[0, :, 3] = logits[0, :, 390] = 40.0
    logits[1] = 0.0
    draft, position = window(terms, logits, None, (9, 9))
    assert fused().judge(terms, logits, draft, position, None).tokens.tolist() == [[3, 3], [0, 0]]
    agree(fused(), terms, logits, draft, position)


def test_what_was_drawn_does_not_depend_on_the_blocks_or_on_who_draws() -> None:
    terms, logits = make_terms(STAGES["draws, bias, minimum"]), random_logits(7, 3, 3, 300)
    draft, position = window(terms, logits, None, (9, 9, 9))
    draft = replace(draft, count=torch.full_like(draft.count, 2))
    want = fused().judge(terms, logits, draft, position, None).tokens
    assert torch.equal(fused(512).judge(terms, logits, draft, position, None).tokens, want)
    length = position[:, 0] + 1
    assert torch.equal(fused().propose(terms, logits, length, 0, None)[0], want)
    step = fused().propose(terms, logits[:, 2:], length, 2, None)[0]  # a view, as one node's are
    assert torch.equal(step, want[:, 2:])


@pytest.mark.parametrize("name", ["greedy", "draws, bias, minimum", "min-p", "top-k, top-p"])
def test_broken_nodes_are_told_and_the_others_stand(name: str) -> None:
    terms, logits = make_terms(STAGES[name]), random_logits(8, 3, 4, 205)
    draft, position = window(terms, logits, None, (9, 9, 9))
    logits[0, 1, 130] = torch.nan
    logits[1, 2, 7] = torch.inf
    logits[2, 0] = -torch.inf
    judged = fused().judge(terms, logits, draft, position, None)
    assert judged.broken.int().tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]
    agree(fused(), terms, logits, draft, position)


def test_a_row_whose_every_token_is_masked_is_broken() -> None:
    rows = ({"temperature": 0.0, "stops": (0, 1, 2), "until": 99}, {"stops": (0, 1), "until": 12})
    flags = SamplingFlags(draws=True, min_tokens=True)
    logits = random_logits(9, 2, 2, 3)
    draft, position = window(make_terms(flags, rows), logits, None, (9, 9))
    agree(fused(), make_terms(flags, rows), logits, draft, position)
    judged = fused().judge(make_terms(flags, rows), logits, draft, position, None)
    assert judged.broken.int().tolist() == [[1, 1], [0, 0]]


def test_the_hash_is_the_references_to_the_bit() -> None:
    seeds = torch.tensor([0, -1, 2**63 - 1, -(2**63), 987654321], device=DEVICE)
    places = torch.tensor([0, 1, 131071, 5, 2**31], device=DEVICE)
    row_keys = keys(seeds, Stream.TARGET, places[:, None])  # [R, 1]
    tokens = torch.arange(1, 1001, device=DEVICE)
    want = (mix_(row_keys + tokens * GOLDEN) >> 32) & 0xFFFFFFFF
    hashes, noises = kernel_noise(seeds, places, 1000)
    assert torch.equal(hashes, want)
    torch.testing.assert_close(
        noises, gumbel(row_keys, 1000, torch.float32)[:, 0], rtol=1e-6, atol=5e-7
    )


@pytest.mark.parametrize("heat", [0.05, 1.0, 40.0])
def test_near_ties_fall_as_the_references_formula_rounds_them(heat: float) -> None:
    """Logits that all but cancel the noise: every token within rounding of the best."""
    vocab, width = 300, 8
    terms = make_terms(SamplingFlags(draws=True), ({"temperature": heat},))
    position = torch.arange(20, 20 + width, device=DEVICE).unsqueeze(0)
    g = kernel_noise(terms.seeds.repeat(width), position[0] + 1, vocab)[1]
    jitter = torch.randn(width, vocab, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    logits = (terms.params.temperature * (jitter * 2e-7 - g) + 5.0).unsqueeze(0)
    logits[0, :, 1:].clamp_(max=5.0 + 3.0 * heat)
    logits[0, 0, 0] += 2.0 * heat  # one row has a clear winner all the same
    scores = (logits - logits.amax(2, keepdim=True)) / terms.params.temperature + g
    assert bool((scores[0, 1].topk(2)[0].diff().abs() < 1e-5).all())
    tokens = fused().propose(terms, logits, position[:, 0] + 1, 0, None)[0]
    assert torch.equal(tokens, scores.argmax(2))
    draft = Draft(tokens[:, :-1], position[:, 0] * 0 + width - 1, position[:, 0] * 0)
    assert torch.equal(fused().judge(terms, logits, draft, position, None).tokens, tokens)


@pytest.mark.parametrize("rule", ["reject", "block"])
def test_what_is_not_fused_is_the_reference(rule: str) -> None:
    terms = make_terms(SamplingFlags(draws=True), rule=rule)
    logits = random_logits(11, 3, 2, 50)
    count = torch.tensor([1, 0, 1], device=DEVICE)
    draft = Draft(count.unsqueeze(1) * 4, count, count * 0)
    position = torch.tensor([[3, 4], [7, 8], [9, 10]], device=DEVICE)
    want = REFERENCE.judge(terms, logits, draft, position, None)
    got = fused().judge(terms, logits, draft, position, None)
    assert torch.equal(got.tokens, want.tokens)
    tokens, scores = fused().propose(terms, logits, position[:, 0], 0, None)
    assert scores is not None
    assert torch.equal(tokens, REFERENCE.propose(terms, logits, position[:, 0], 0, None)[0])


def test_double_precision_is_the_reference() -> None:
    terms, logits = make_terms(SamplingFlags(draws=True)), random_logits(12, 3, 2, 50).double()
    position = torch.tensor([[3, 4], [7, 8], [9, 10]], device=DEVICE)
    want = REFERENCE.propose(terms, logits, position[:, 0], 0, None)[0]
    assert torch.equal(fused().propose(terms, logits, position[:, 0], 0, None)[0], want)


def test_a_cpu_has_no_kernels() -> None:
    assert isinstance(make_chooser(torch.device("cpu")), ReferenceChooser)


def test_who_compares_is_drawn_in_the_kernels() -> None:
    """The rule says so, whatever its name; one that does not is for the reference."""
    flags, seeds = SamplingFlags(), torch.zeros(1, dtype=torch.int64)
    for rule in (*RULES.values(), Match("block"), Mutant(RULES["match"])):
        terms = Terms(rule, parameters(({},)), flags, seeds)
        assert _fuses(terms, torch.zeros(1, 1, 4)) is (type(rule) is Match)
