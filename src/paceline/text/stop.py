"""Stop strings, exact at the character.

One automaton step a character and stop string (Knuth, Morris, Pratt), so the result cannot
depend on how the text was split over tokens or rounds, and nothing is searched twice.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Watches one text for its stop strings.

    The stop string completed first wins; of several completed by the same character, the
    longest. Its own text is returned only where it is to be shown, and nothing after it ever.
    """

    def __init__(self, stops: Sequence[str], shown: bool = False) -> None:
        """stops: none of them empty. shown: the text ends with the one that was met."""
        assert all(stops)
        self._stops = tuple(dict.fromkeys(stops))
        self._failure = [_failure_table(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)  # characters of each stop that the text ends with
        self._shown, self._held = shown, ""
        self._hit: str | None = None

    def feed(self, text: str, armed: bool = True) -> tuple[str, str | None]:
        """Return (text that is safe to show, the stop string that was completed or None).

        Held back is only the longest end of the text that begins some stop string. armed: whether
        one that is completed in `text` counts; one that only begins there may count later.
        """
        if self._hit is not None:
            return "", self._hit
        if not self._stops:
            return text, None
        seen = self._held + text
        for at in range(len(self._held), len(seen)):
            found = self._step(seen[at])
            if found is not None and armed:
                self._hit, self._held = found, ""
                return seen[: at + 1 - (0 if self._shown else len(found))], found
        keep = len(seen) - max(self._matched)
        self._held = seen[keep:]
        return seen[:keep], None

    def flush(self) -> str:
        """Return the text still held back: nothing can follow that would complete a stop."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _step(self, character: str) -> str | None:
        """Advance every automaton; return the longest stop completed by this character. Each then
        stands where a text that goes on may still complete it."""
        best: str | None = None
        for i, stop in enumerate(self._stops):
            matched = self._matched[i]
            while matched and stop[matched] != character:
                matched = self._failure[i][matched - 1]
            if stop[matched] == character:
                matched += 1
            if matched == len(stop):
                matched = self._failure[i][-1]
                if best is None or len(stop) > len(best):
                    best = stop
            self._matched[i] = matched
        return best


def _failure_table(pattern: str) -> list[int]:
    """Return, per prefix, the length of its longest proper prefix that is also its end."""
    table = [0] * len(pattern)
    length = 0
    for i in range(1, len(pattern)):
        while length and pattern[i] != pattern[length]:
            length = table[length - 1]
        if pattern[i] == pattern[length]:
            length += 1
        table[i] = length
    return table
