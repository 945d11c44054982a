"""The round's small kernels against the torch forms, on the same slots."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from paceline.engine.slots import Batch, Slots
from paceline.ops.bookkeeping import Bookkeeping, make_bookkeeping
from paceline.speculation.choose import Judgement
from paceline.speculation.window import ahead, step, tail
from paceline.types import Draft, Limits, Verdict, Window

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = Bookkeeping(DEVICE)
LENGTH, VOCAB, K, PAGE = 24, 11, 5, 8
TABLE = LENGTH // PAGE
ARRAYS = (
    "tokens", "length", "active", "counts", "draft_tokens", "draft_count", "draft_source"
)  # fmt: skip


def make_slots(seed: int) -> tuple[Slots, Slots]:
    """The same five slots twice, with the torch forms and with kernels: slot 0 is scratch, one
    row is idle, one is full, one has a single token."""
    pair = []
    for kernels in (None, KERNELS):
        generator = torch.Generator().manual_seed(seed)
        limits = Limits(5, LENGTH, K, VOCAB, 5 * TABLE + 1, PAGE, DEVICE)
        slots = Slots(limits, stores_q=False, compute=torch.float32)
        slots.kernels = kernels

        def draw(high: int, *shape: int, by: torch.Generator = generator) -> Tensor:
            return torch.randint(high, shape, generator=by).to(DEVICE)

        slots.tokens.copy_(draw(VOCAB, 5, LENGTH))
        slots.length.copy_(torch.tensor([1, 9, LENGTH, 1, 20]))
        slots.limit.copy_(torch.tensor([0, 20, LENGTH, LENGTH, 22]))
        slots.active.copy_(torch.tensor([False, True, True, True, seed % 2 == 0]))
        order = torch.randperm(5 * TABLE, generator=generator) + 1
        slots.pages[1:] = order.view(5, TABLE)[1:].to(DEVICE)
        slots.k_limit.copy_(torch.tensor([0, K, 2, K, 3]))
        slots.draft_tokens.copy_(draw(VOCAB, 5, K))
        slots.draft_count.copy_(draw(K + 1, 5))
        slots.draft_count[0] = 0  # idle rows have no draft, ever
        slots.draft_source.copy_(draw(3, 5))
        slots.stop_ids[:, 0] = draw(VOCAB, 5)
        slots.stop_ids[1, 3] = 4
        pair.append(slots)
    return pair[0], pair[1]


def both(seed: int, index: list[int]) -> tuple[tuple[Slots, Batch], tuple[Slots, Batch]]:
    at = torch.tensor(index, device=DEVICE)
    reference, fused = make_slots(seed)
    return (reference, reference.batch(at)), (fused, fused.batch(at))


def same_fields(left: object, right: object, but: tuple[str, ...] = ()) -> None:
    for field in fields(left):  # type: ignore[arg-type]
        mine, theirs = getattr(left, field.name), getattr(right, field.name)
        if field.name in but:
            continue
        if isinstance(mine, Tensor):
            assert mine.dtype == theirs.dtype, field.name
            assert torch.equal(mine, theirs), field.name
        else:
            assert mine == theirs, field.name


def same_slots(left: Slots, right: Slots) -> None:
    for name in ARRAYS:
        # Slot 0 is scratch: the torch form writes there what the kernels leave out.
        assert torch.equal(getattr(left, name)[1:], getattr(right, name)[1:]), name
    assert not right.active[0]
    assert right.length[0] == 1


@pytest.mark.parametrize("index", [[1], [1, 2, 3, 4], [4, 3, 0, 0]])
@pytest.mark.parametrize("k", [0, 1, K])
def test_the_window_from_the_slots(index: list[int], k: int) -> None:
    (reference, batch), (fused, again) = both(k, index)
    bounds = (9,) * len(index)
    before = batch.pages.clone()
    for slots in (reference, fused):  # both texts have grown since the batch was gathered
        slots.set_pages(1, 1, [77])
        slots.set_pages(4, 0, [78, 79])
    draft, window = fused.open_window(again, bounds, k)
    theirs, expected = reference.open_window(batch, bounds, k)
    assert window.pages is again.pages
    assert not torch.equal(window.pages, before)
    assert torch.equal(window.pages, fused.pages[again.index])
    same_fields(draft, theirs)
    same_fields(window, expected)
    same_slots(reference, fused)


@pytest.mark.parametrize("penalties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_verdict_into_the_slots(seed: int, penalties: bool) -> None:
    index = [[1, 2, 3, 4], [1], [3, 4, 0, 0], [2, 1, 4]][seed]
    width = [6, 3, 1, 4][seed]
    (reference, batch), (fused, again) = both(seed, index)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(6):
        accepted = torch.randint(width, (len(index),), generator=generator)
        tokens = torch.randint(VOCAB, (len(index), width), generator=generator)
        tokens *= torch.arange(width) <= accepted.unsqueeze(1)
        broken = torch.rand(tokens.shape, generator=generator) < 0.05
        count = (accepted + torch.randint(2, accepted.shape, generator=generator)).to(DEVICE)
        judged = Judgement(
            tokens.to(DEVICE),
            accepted.to(DEVICE),
            torch.minimum(accepted.to(DEVICE) + 1, count),
            broken.to(DEVICE),
        )
        draft = Draft(judged.tokens[:, 1:], count, count % 3)
        mine = fused.settle(again, draft, judged, penalties)
        theirs = reference.settle(batch, draft, judged, penalties)
        same_fields(mine, theirs)
        same_slots(reference, fused)
    assert isinstance(mine, Verdict)


@pytest.mark.parametrize(("width", "k"), [(2, 5), (7, 1), (1, 3)])
def test_the_places_of_a_draft(width: int, k: int) -> None:
    (reference, batch), _ = both(1, [1, 2, 3, 4])
    rows = reference.rows(batch, (9,) * 4, committed=1, fresh=1)
    newest, places = KERNELS.tail_and_ahead(rows, width, k)
    same_fields(newest, tail(rows, width))
    same_fields(places, ahead(rows, k))
    one = step(places, k - 1, rows.length)
    assert isinstance(one, Window)
    for tensor in (one.position, one.address, one.valid):
        assert tensor.is_contiguous(), "no copy before a kernel reads it"


@pytest.mark.parametrize("length", [LENGTH, 2100 * PAGE])
def test_addresses_go_through_the_page_table(length: int) -> None:
    """Of tables with one column more than fits at once, too."""
    limits = Limits(3, length, K, VOCAB, 9000, PAGE, DEVICE)
    slots = Slots(limits, stores_q=False, compute=torch.float32)
    slots.kernels = KERNELS
    pages = torch.randperm(2 * limits.table, generator=torch.Generator().manual_seed(2)) + 1
    pages = pages.view(2, -1)
    index = torch.tensor([2, 1], device=DEVICE)
    batch = slots.batch(index)
    for slot, row in zip(index.tolist(), pages.tolist(), strict=True):
        slots.set_pages(slot, 0, row[:2])
        slots.set_pages(slot, 2, row[2:])
    slots.length[1:] = torch.tensor([length - 3, 15])
    slots.active[1:] = True
    slots.draft_count[1:] = 2
    _, window = slots.open_window(batch, (), 2)
    assert torch.equal(batch.pages.cpu(), pages)
    every = (window, *KERNELS.tail_and_ahead(slots.rows(batch, (), 1, 1), 3, 4))
    for one in every:
        place, valid, address = one.position.cpu(), one.valid.cpu(), one.address.cpu()
        expected = pages.gather(1, place // PAGE) * PAGE + place % PAGE
        assert valid.any()
        assert torch.equal(address[valid], expected[valid])
    slots.release(1)
    slots.refresh(batch)
    assert not batch.pages[1].any()


@pytest.mark.parametrize("k", [1, 4])
def test_the_draft_that_waits(k: int) -> None:
    (reference, batch), (fused, again) = both(k, [4, 1, 2, 3])
    tokens = torch.arange(4 * k, device=DEVICE).view(k, 4).t() % VOCAB
    numbers = torch.arange(K + 1, device=DEVICE)
    for count in (numbers[k].expand(4), numbers[:4].clamp(max=k)):
        draft = Draft(tokens, count, numbers[1].expand(4))
        reference.keep_draft(batch, draft)
        fused.keep_draft(again, draft)
        same_slots(reference, fused)


def test_a_cpu_has_no_kernels() -> None:
    assert make_bookkeeping(torch.device("cpu")) is None
