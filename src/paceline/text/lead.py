"""What a text may begin with before its stop strings count: a model's reasoning, between marks.

Like `StopStrings` it may not depend on how the text was split over tokens or rounds.
"""

from __future__ import annotations

from typing import Literal

_SPACE = " \t\r\n"


class Lead:
    """Finds in one text where that is over which its stop strings do not count in.

    It is over behind the mark `after` and the space that follows; where `opened_by` is given and
    the text does not begin with that mark, behind space or not, there is none of it.
    """

    def __init__(self, after: str, opened_by: str = "") -> None:
        assert after
        self._after, self._opened_by = after, opened_by
        self._state: Literal["before", "inside", "gap", "behind"]
        self._state = "before" if opened_by else "inside"
        # While it cannot be told yet whether the text begins with the mark: what there is of it.
        self._held: list[tuple[str, bool]] = []
        self._tail = ""  # the end of what has been seen, where `after` may have begun

    @property
    def inside(self) -> bool:
        """Whether the text stands in the lead, its first mark written and its last one not."""
        return self._state == "inside"

    def copy(self) -> Lead:
        """Another that has seen the same."""
        made = Lead(self._after, self._opened_by)
        made._state, made._held, made._tail = self._state, list(self._held), self._tail
        return made

    def feed(self, text: str, armed: bool, last: bool) -> tuple[str, list[tuple[str, bool]]]:
        """What `text` adds of the lead, which may be shown, and behind it the pieces in which stop
        strings count, each with its `armed` (see `StopStrings.feed`). last: the text ends here."""
        if self._state == "behind":
            return "", [(text, armed)]
        shown = ""
        if self._state == "before":
            self._held.append((text, armed))
            whole = "".join(piece for piece, _ in self._held)
            begun = whole.lstrip(_SPACE)
            if not begun.startswith(self._opened_by):
                if self._opened_by.startswith(begun) and not last:
                    return "", []
                self._state, held, self._held = "behind", self._held, []
                return "", held
            text = begun[len(self._opened_by) :]
            shown, self._state, self._held = whole[: len(whole) - len(text)], "inside", []
        if self._state == "inside":
            seen = self._tail + text
            at = seen.find(self._after)
            if at < 0:
                self._tail = seen[max(0, len(seen) - len(self._after) + 1) :]
                return shown + text, []
            rest = seen[at + len(self._after) :]
            shown, text = shown + text[: len(text) - len(rest)], rest
            self._state = "gap"
        rest = text.lstrip(_SPACE)
        shown += text[: len(text) - len(rest)]
        if not rest:
            return shown, []
        self._state = "behind"
        return shown, [(rest, armed)]
