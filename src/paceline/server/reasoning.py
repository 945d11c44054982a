"""What a model thinks before it answers, told apart from the answer by its marks.

Pure. Where the chat template has the marks, and whether it leaves the first one open, is found
here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paceline.server.tool_formats import Part

_SPACE = " \t\r\n"
_PAIRS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


@dataclass(frozen=True, slots=True)
class Marks:
    """Between which a model's reasoning stands."""

    begin: str
    end: str


def marks_of(template: str) -> Marks | None:
    """The marks in a chat template, or None where it has none."""
    return next((Marks(*pair) for pair in _PAIRS if pair[1] in template), None)


class ReasoningReader:
    """Splits one text: reasoning first, if it begins with it, and then everything else."""

    def __init__(self, marks: Marks, opened: bool) -> None:
        """opened: the prompt has ended with the first mark, so that the text begins inside."""
        self._marks = marks
        self._state = "inside" if opened else "before"
        self._held = ""
        self._shown = False  # some of the reasoning
        self.found = opened

    def feed(self, text: str) -> tuple[str, str]:
        """The reasoning and the rest that `text` adds."""
        self._held += text
        if self._state == "before":
            begun = self._held.lstrip(_SPACE)
            if begun.startswith(self._marks.begin):
                self._state, self.found = "inside", True
                self._held = begun[len(self._marks.begin) :]
            elif not self._marks.begin.startswith(begun):
                self._state = "behind"
        reasoning = self._inside() if self._state == "inside" else ""
        if self._state == "gap":
            self._held = self._held.lstrip(_SPACE)
            if self._held:
                self._state = "behind"
        if self._state != "behind":
            return reasoning, ""
        rest, self._held = self._held, ""
        return reasoning, rest

    def end(self) -> tuple[str, str]:
        """What was held back, once the text is over."""
        held, self._held = self._held, ""
        if self._state == "inside":
            return (held.rstrip(_SPACE) if self._shown else held.strip(_SPACE)), ""
        return "", held if self._state == "before" else ""

    def _inside(self) -> str:
        """The reasoning that may be shown; without the space around it."""
        thought, found, behind = self._held.partition(self._marks.end)
        if found:
            self._state, self._held = "gap", behind
        else:
            end = self._marks.end
            keep = next(n for n in range(len(end) - 1, -1, -1) if thought.endswith(end[:n]))
            thought = thought[: len(thought) - keep]
        if not self._shown:
            thought = thought.lstrip(_SPACE)
        shown = thought.rstrip(_SPACE)
        if not found:
            self._held = self._held[self._held.index(shown) + len(shown) :] if shown else self._held
        self._shown = self._shown or bool(shown)
        return shown


def reasoning_tokens(marks: Marks, pieces: Sequence[bytes]) -> int:
    """How many of a text's tokens, given as their bytes, are its reasoning and its marks."""
    end, written = marks.end.encode(), b""
    for place, piece in enumerate(pieces):
        written = written[-len(end) :] + piece
        if end in written:
            return place + 1
    return len(pieces)


def parts(reasoning: str) -> list[Part]:
    return [Part("reasoning", reasoning)] if reasoning else []
