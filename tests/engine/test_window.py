"""Windows and cuts against loops over Python numbers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from paceline.speculation.window import ahead, assemble, cut, step, tail
from paceline.types import Draft, Rows, Window

BOUNDS, PAGE = (6,), 4


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    """One to four rows of distinct slots, any length from one token to a full slot."""
    slots, width = draw(st.integers(2, 6)), draw(st.integers(1, 12))
    index = draw(st.lists(st.integers(1, slots - 1), min_size=1, max_size=4, unique=True))
    length = [draw(st.integers(1, width)) for _ in index]
    tokens = torch.arange(slots * width).view(slots, width) * 7 % 101
    table = -(-width // PAGE)
    seed = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    pages = 1 + torch.randperm(len(index) * table, generator=seed).view(len(index), table)
    return Rows(
        index=torch.tensor(index),
        tokens=tokens,
        length=torch.tensor(length),
        bounds=BOUNDS,
        pages=pages,
        page_size=PAGE,
        committed=1,
        fresh=1,
    )


def place_of(rows: Rows, row: int, position: int) -> int:
    """Where a position lies in every cache."""
    return int(rows.pages[row, position // PAGE]) * PAGE + position % PAGE


def listed(window: Window) -> list[list[tuple[int, int, int, bool]]]:
    """Per row and node: id, position, address, valid."""
    columns = (window.ids, window.position, window.address, window.valid)
    assert {column.shape for column in columns} == {window.ids.shape}
    rows = zip(*map(torch.Tensor.tolist, columns), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


@given(rows=some_rows(), k=st.integers(0, 5), data=st.data())
def test_assemble(rows: Rows, k: int, data: st.DataObject) -> None:
    size, width = len(rows.index), rows.tokens.shape[1]
    tokens = data.draw(
        st.lists(
            st.lists(st.integers(0, 100), min_size=k, max_size=k), min_size=size, max_size=size
        )
    )
    count = [data.draw(st.integers(0, k)) for _ in range(size)]
    # A slot has room for what is counted.
    count = [min(c, width - int(n)) for c, n in zip(count, rows.length, strict=True)]
    active = [data.draw(st.booleans()) for _ in range(size)]
    draft = Draft(
        torch.tensor(tokens, dtype=torch.int64).view(size, k),
        torch.tensor(count),
        torch.zeros(size, dtype=torch.int64),
    )
    window = assemble(rows, draft, torch.tensor(active))
    assert (window.bounds, window.page_size) == (BOUNDS, PAGE)
    assert window.pages is rows.pages
    for row, nodes in enumerate(listed(window)):
        slot, root = int(rows.index[row]), int(rows.length[row]) - 1
        assert len(nodes) == k + 1
        for node, (token, position, address, valid) in enumerate(nodes):
            assert token == (int(rows.tokens[slot, root]), *tokens[row])[node]
            assert valid == (active[row] and node <= count[row])
            assert position == min(root + node, width - 1)
            assert address == (place_of(rows, row, position) if valid else node % PAGE)


@given(rows=some_rows(), width=st.integers(1, 9))
def test_tail(rows: Rows, width: int) -> None:
    for row, nodes in enumerate(listed(tail(rows, width))):
        slot, length = int(rows.index[row]), int(rows.length[row])
        text = rows.tokens[slot, :length].tolist()
        for node, (token, position, address, valid) in enumerate(nodes):
            place = length - width + node
            assert valid == (place >= 0)
            assert position == max(place, 0)
            assert token == text[position]
            assert address == (place_of(rows, row, position) if valid else node % PAGE)


@given(rows=some_rows(), k=st.integers(1, 6))
def test_ahead_and_step(rows: Rows, k: int) -> None:
    window = ahead(rows, k)
    for row, nodes in enumerate(listed(window)):
        length, width = int(rows.length[row]), rows.tokens.shape[1]
        for node, (token, position, address, valid) in enumerate(nodes):
            assert token == 0
            assert valid == (length + node < width)
            assert position == min(length + node, width - 1)
            assert address == (place_of(rows, row, position) if valid else node % PAGE)
    ids = torch.arange(len(rows.index)) + 50
    for node in range(k):
        one = listed(step(window, node, ids))
        for row, nodes in enumerate(one):
            assert nodes == [(50 + row, *listed(window)[row][node][1:])]


@given(data=st.data(), size=st.integers(1, 4), width=st.integers(1, 6))
def test_cut(data: st.DataObject, size: int, width: int) -> None:
    small = st.integers(0, 5)
    tokens = [[data.draw(small) for _ in range(width)] for _ in range(size)]
    given = [data.draw(st.integers(1, width)) for _ in range(size)]
    room = [data.draw(st.integers(1, 8)) for _ in range(size)]
    stops = [data.draw(st.lists(small, max_size=3)) for _ in range(size)]
    padded = torch.tensor([row + [-1] * (4 - len(row)) for row in stops])
    n, ended = cut(torch.tensor(tokens), torch.tensor(given), padded, torch.tensor(room))
    for row in range(size):
        kept, over = 0, False
        while kept < given[row] and not over:
            kept += 1
            over = tokens[row][kept - 1] in stops[row] or kept == room[row]
        assert int(n[row]) == kept
        assert bool(ended[row]) == over


def test_what_is_behind_a_stop_cannot_end_a_row() -> None:
    """Padding after what the rule gave may hold anything, stop ids too."""
    n, ended = cut(
        torch.tensor([[4, 9, 9]]), torch.tensor([1]), torch.tensor([[9, -1]]), torch.tensor([5])
    )
    assert (n.tolist(), ended.tolist()) == ([1], [False])
