"""What clients may send and this server does not do, as data: refused by name where it would change
the text, since a 200 with another text than was asked for is worse than a 400.

What changes no text (`user`, `store`, `metadata`, …) is ignored like any unknown field.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.server.errors import unsupported
from paceline.server.wire import ChatBody, Generating

# How clients write that they do not use a field.
_UNUSED: tuple[object, ...] = (False, [], {}, "")


@dataclass(frozen=True, slots=True)
class _Field:
    """instead: what to do about it. harmless: values beside null with which nothing changes."""

    instead: str
    harmless: tuple[object, ...] = _UNUSED


_OUTPUTS = 'send "structured_outputs": {{"{}": …}}'
_BOTH = {
    **{
        f"guided_{kind}": _Field(_OUTPUTS.format(kind), ())
        for kind in ("json", "regex", "choice", "grammar")
    },
    "allowed_token_ids": _Field("bind the text with structured_outputs"),
    "bad_words": _Field("forbid tokens with a logit_bias of -100"),
    "logits_processors": _Field("use logit_bias or structured_outputs"),
    "prompt_embeds": _Field("send text or token ids"),
    "thinking_token_budget": _Field("bound the text with max_tokens"),
    "truncate_prompt_tokens": _Field("shorten the prompt before it is sent"),
    "use_beam_search": _Field("ask for n texts"),
    "vllm_xargs": _Field("leave it out"),
}
_CHAT = {
    "audio": _Field("only text is written"),
    "chat_template": _Field("apply it yourself and send the text to /v1/completions, with "
                            '"add_special_tokens": false'),
    "documents": _Field("put them into a message"),
    "echo": _Field("the last message is known to whoever sent it: leave echo out"),
    "verbosity": _Field("ask for it in a message", (*_UNUSED, "medium")),
    "web_search_options": _Field("leave it out"),
}  # fmt: skip


def refuse_unserved(body: Generating) -> None:
    """Raise ApiError for the first field in use that is not served here."""
    for name, field in (_BOTH | _CHAT if isinstance(body, ChatBody) else _BOTH).items():
        value: object = getattr(body, name)
        # By type as well: 0 is False to Python, and a budget of nothing to a client.
        if value is None or any(value == h and type(value) is type(h) for h in field.harmless):
            continue
        raise unsupported(name, f"{name} is not supported; {field.instead}")
