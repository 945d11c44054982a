"""What a contestant is asked and what it answers; how a conversation becomes such asks.

The same for every contestant, so that all of them read the same text and end it the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from paceline.lab.bench_record import Opening, RoundCounts, Sampling, TimeSpent
from paceline.lab.workload_lines import Conversation, Message

# What ends an answer where a chat is written out as plain text: the next speaker's line.
_SPEAKERS = {"user": "User", "assistant": "Assistant"}
_NEXT_SPEAKER = "\nUser:"


@dataclass(frozen=True, slots=True)
class Ask:
    """One text. Either `prompt` or `messages`. timeout: seconds after which it is given up."""

    sampling: Sampling
    timeout: float
    prompt: str | None = None
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Times are seconds from sending; the other fields are as in `Measurement`.
    error: what went wrong, in a line; what had come until then stands."""

    text: str = ""
    wall: float | None = None
    event_times: tuple[float, ...] = ()
    event_tokens: tuple[int, ...] = ()
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    token_ids: tuple[int, ...] | None = None
    rounds: RoundCounts | None = None
    spent: TimeSpent | None = None
    finish: str | None = None
    error: str | None = None


class Player(Protocol):
    """A contestant that is ready to be asked, by as many at once as there are."""

    @property
    def chats(self) -> bool:
        """Whether it takes messages; else a chat has to be written out as plain text."""
        ...

    async def ask(self, ask: Ask) -> Answer:
        """Have one text written. Raises nothing but cancellation: what goes wrong is an answer."""
        ...

    def opening(self) -> Opening:
        """What there is to say about it."""
        ...

    async def close(self) -> None: ...


def ask_turn(
    item: Conversation, answers: Sequence[str], sampling: Sampling, chats: bool, timeout: float
) -> Ask:
    """The ask for a conversation's next turn, after the model's own `answers` to those before."""
    if item.prompt is not None:
        return Ask(sampling, timeout, prompt=item.prompt)
    messages = list(item.context)
    for place, turn in enumerate(item.turns[: len(answers) + 1]):
        messages.append({"role": "user", "content": turn})
        if place < len(answers):
            messages.append({"role": "assistant", "content": answers[place]})
    if chats:
        return Ask(sampling, timeout, messages=tuple(messages))
    stop = (*sampling.stop, *(() if _NEXT_SPEAKER in sampling.stop else (_NEXT_SPEAKER,)))
    return Ask(replace(sampling, stop=stop), timeout, prompt=plainly(messages))


def plainly(messages: Sequence[Message]) -> str:
    """A chat as plain text, for models without a chat template.

    Each message is a paragraph that begins with `User: ` or `Assistant: `, those of other roles
    begin with nothing, and the last paragraph is `Assistant:`, to be continued.
    """
    parts = []
    for message in messages:
        speaker = _SPEAKERS.get(message["role"])
        content = message["content"].strip()
        parts.append(f"{speaker}: {content}" if speaker else content)
    return "\n\n".join([*parts, "Assistant:"])


def resolve_sampling(item: Conversation, defaults: Sampling, given: frozenset[str]) -> Sampling:
    """A text's sampling: what the command line was given, else the item's own wish, else the
    default. given: names of the fields that the command line was given."""
    wishes = {
        name: value
        for name in item.wishes.__dataclass_fields__
        if name not in given and (value := getattr(item.wishes, name)) is not None
    }
    return replace(defaults, **wishes)


def warm_up(item: Conversation, sampling: Sampling, most: int) -> tuple[Conversation, Sampling]:
    """A conversation to warm up with: one text, as long as the item's first and of the same words,
    in an order whose beginning no prefix cache will know again when the item is measured."""
    first = None if item.prompt is not None else (_turned(item.turns[0]),)
    turned = Conversation(
        item.id,
        prompt=None if item.prompt is None else _turned(item.prompt),
        context=tuple({**m, "content": _turned(m["content"])} for m in item.context),
        turns=first or (),
    )
    return turned, replace(sampling, max_tokens=min(most, sampling.max_tokens))


def _turned(text: str) -> str:
    between = "\n" if "\n" in text.strip() else " "
    return between.join(reversed(text.split(between)))
