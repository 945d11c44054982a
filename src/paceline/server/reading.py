"""How an answer's text is read: reasoning, content, tool calls, in the order they come."""

from __future__ import annotations

from dataclasses import dataclass

from paceline.server.reasoning import Marks, ReasoningReader, parts
from paceline.server.tool_formats import Part, ToolReader


@dataclass(frozen=True, slots=True)
class Reading:
    """What to look for in a chat's texts. marks: of reasoning, or None to leave it in the text;
    opened: the prompt began it; family: the format of tool calls, or None where there are none;
    names: of the functions; most: calls to take; id_size: characters of a call's id."""

    marks: Marks | None = None
    opened: bool = False
    family: str | None = None
    names: tuple[str, ...] = ()
    most: int | None = None
    id_size: int | None = None

    @property
    def plain(self) -> bool:
        """Whether there is nothing to look for."""
        return self.marks is None and self.family is None


class PartReader:
    """Reads one text."""

    def __init__(self, reading: Reading) -> None:
        self._reasoning = None
        if reading.marks is not None:
            self._reasoning = ReasoningReader(reading.marks, reading.opened)
        self._tools = None
        if reading.family is not None:
            self._tools = ToolReader(reading.family, reading.names, reading.most)
        self.calls = 0

    @property
    def reasoned(self) -> bool:
        """Whether the text has reasoning, even if none of it is shown."""
        return self._reasoning is not None and self._reasoning.found

    def feed(self, text: str, last: bool = False) -> list[Part]:
        """The parts that `text` adds; last: it ends here."""
        found: list[Part] = []
        if self._reasoning is not None:
            thought, text = self._reasoning.feed(text)
            found += parts(thought)
            if last:
                thought, rest = self._reasoning.end()
                found, text = found + parts(thought), text + rest
        if self._tools is None:
            found += [Part("content", text)] if text else []
        else:
            found += self._tools.feed(text)
            found += self._tools.end() if last else []
        self.calls += sum(part.kind == "call" for part in found)
        return found
