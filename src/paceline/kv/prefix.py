"""Which pages hold which text, so that a prompt's beginning is computed once. Host only: no torch.

Exact: a tree whose every node is one full page, found by its parent and by the page's own token
ids. No hash stands for a text, so no two texts can be taken for one another. Who holds a page is
the allocator's matter; what goes in and when, the scheduler's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Hit(NamedTuple):
    """The longest run of pages known for a text. observed: of its positions, from the front, those
    that are valid in the drafter's cache too."""

    pages: list[int]
    observed: int


@dataclass(slots=True, eq=False)
class _Node:
    """One full page. key: its tokens, and the `shift` behind them. drafter: the drafter's cache in
    it is valid. sound: a finite verdict was drawn from it."""

    page: int
    key: tuple[int, ...] = ()
    parent: _Node | None = None
    children: dict[tuple[int, ...], _Node] = field(default_factory=dict)
    drafter: bool = False
    sound: bool = False


class PrefixIndex:
    """Full pages by the text they hold.

    Two rules keep a parent from going before its children: who holds a page holds the pages in
    front of it as the index has them, and whoever lets go lets go of the last page first.
    """

    def __init__(self, page_size: int, shift: int = 0) -> None:
        """shift: a drafter's cache at a position depends on so many tokens behind it, so they
        belong to what a page is known by (`Needs.shift`)."""
        self.page_size, self._shift = page_size, shift
        self._root = _Node(0)
        self._nodes: dict[int, _Node] = {}
        self.inserts = 0  # pages ever put in: what was looked up before may be found now
        self.asked = 0  # tokens looked up at admission
        self.hits = 0  # tokens that need not be computed
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def __contains__(self, page: int) -> bool:
        return page in self._nodes

    def match(self, tokens: Sequence[int], most: int) -> Hit:
        """The longest run of full pages that holds the beginning of `tokens`, `most` positions at
        most."""
        node, pages, observed, whole = self._root, list[int](), 0, True
        for end in self._ends(tokens, most):
            child = node.children.get(self._key(tokens, end))
            if child is None:
                break
            node = child
            pages.append(node.page)
            whole = whole and node.drafter
            observed = end if whole else observed
        return Hit(pages, observed)

    def insert(
        self, tokens: Sequence[int], pages: Sequence[int], observed: int = 0, sound: int = 0
    ) -> None:
        """Make known that `pages` hold the beginning of `tokens`, all of them full.

        observed, sound: how many positions the drafter's cache holds, and a finite verdict was
        drawn from. Ends where the index has another page for the same text: pages below that one
        would have a parent that their holder does not hold.
        """
        assert len(tokens) >= len(pages) * self.page_size
        node = self._root
        for page, end in zip(pages, self._ends(tokens, len(tokens)), strict=False):
            key = self._key(tokens, end)
            child = node.children.get(key)
            if child is None:
                assert page not in self._nodes, "one page, two texts"
                child = node.children[key] = self._nodes[page] = _Node(page, key, node)
                self.inserts += 1
            elif child.page != page:
                return
            child.drafter = child.drafter or end <= observed
            child.sound = child.sound or end <= sound
            node = child

    def evict(self, page: int) -> None:
        """Forget a page that is to hold something else. No page known stands behind it."""
        assert not self._nodes[page].children, "a parent goes before its children"
        self._forget(page)
        self.evictions += 1

    def distrust(self, pages: Sequence[int]) -> list[int]:
        """A text on `pages` failed: forget the first of them that is not known to be sound and all
        that stands behind it, whoever computed it. Returns the pages forgotten."""
        nodes = (self._nodes[page] for page in pages if page in self._nodes)
        first = next((node for node in nodes if not node.sound), None)
        below = [first] if first is not None else []
        for node in below:  # grows as it goes: parents before their children
            below.extend(node.children.values())
        for node in reversed(below):
            self._forget(node.page)
        return [node.page for node in below]

    def parent(self, page: int) -> int | None:
        """The page in front of a page that is known, or None for a text's first."""
        parent = self._nodes[page].parent
        return parent.page if parent is not None and parent is not self._root else None

    def check(self) -> None:
        """Assert that the tree holds together. Slow."""
        seen, todo = 0, [self._root]
        while todo:
            node = todo.pop()
            for key, child in node.children.items():
                assert child.key == key
                assert child.parent is node
                assert len(key) == self.page_size + self._shift
                assert child.page != 0
                assert self._nodes.get(child.page) is child
                if node is not self._root:
                    assert node.key[self.page_size :] == key[: self._shift]
                    assert node.sound or not child.sound
                seen += 1
                todo.append(child)
        assert seen == len(self._nodes)

    def _forget(self, page: int) -> None:
        node = self._nodes.pop(page)
        assert node.parent is not None
        assert not node.children
        del node.parent.children[node.key]

    def _ends(self, tokens: Sequence[int], most: int) -> range:
        """Where the pages end that can be told from `tokens`, `most` positions at most."""
        last = min(most, len(tokens) - self._shift)
        return range(self.page_size, last + 1, self.page_size)

    def _key(self, tokens: Sequence[int], end: int) -> tuple[int, ...]:
        return tuple(tokens[end - self.page_size : end + self._shift])
