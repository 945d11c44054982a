"""What clients may send and this server does not do, as data: refused by name where it would change
the text, since a 200 with another text than was asked for is worse than a 400.

What changes no text (`user`, `store`, `metadata`, …) is ignored like any unknown field.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.server.errors import unsupported
from paceline.server.wire import ChatBody, Generating

# How clients write that they do not use a field, and that a number changes nothing.
_UNUSED: tuple[object, ...] = (False, [], {}, "")
_ZERO, _ONE = (*_UNUSED, 0, 0.0), (*_UNUSED, 1, 1.0)


@dataclass(frozen=True, slots=True)
class _Field:
    """instead: what to do about it. harmless: values beside null with which nothing changes."""

    instead: str
    harmless: tuple[object, ...] = _UNUSED


_OUTPUTS = 'send "structured_outputs": {{"{}": …}}'
_LIKELY = "shape the distribution with temperature, top_k, top_p or min_p"
_BOTH = {
    **{
        f"guided_{kind}": _Field(_OUTPUTS.format(kind), ())
        for kind in ("json", "regex", "choice", "grammar")
    },
    "json_schema": _Field('send "response_format": {"type": "json_schema", "json_schema": …}'),
    "regex": _Field(_OUTPUTS.format("regex")),
    **{
        name: _Field(f"{_OUTPUTS.format('grammar')}, in Lark's notation")
        for name in ("grammar", "ebnf", "structural_tag")
    },
    "repeat_penalty": _Field("send repetition_penalty", _ONE),
    "no_repeat_ngram_size": _Field("send repetition_penalty or frequency_penalty", _ZERO),
    **{name: _Field("send max_tokens", ()) for name in ("max_new_tokens", "n_predict")},
    "min_new_tokens": _Field("send min_tokens", _ZERO),
    "typical_p": _Field(_LIKELY, _ONE),
    "mirostat": _Field(_LIKELY, _ZERO),
    "xtc_probability": _Field(_LIKELY, _ZERO),
    "dry_multiplier": _Field("send repetition_penalty or frequency_penalty", _ZERO),
    "cache_salt": _Field("leave it out, or serve with --no-prefix-cache"),
    "prompt_logprobs": _Field('send "echo": true with logprobs to /v1/completions'),
    "allowed_token_ids": _Field("bind the text with structured_outputs"),
    "bad_words": _Field("forbid tokens with a logit_bias of -100"),
    "logits_processors": _Field("use logit_bias or structured_outputs"),
    "prompt_embeds": _Field("send text or token ids"),
    "thinking_token_budget": _Field("bound the text with max_tokens"),  # a chat's own is known
    "truncate_prompt_tokens": _Field("shorten the prompt before it is sent"),
    "use_beam_search": _Field("ask for n texts"),
    "vllm_xargs": _Field("leave it out"),
}
_CHAT = {
    "audio": _Field("only text is written"),
    "chat_template": _Field("apply it yourself and send the text to /v1/completions, with "
                            '"add_special_tokens": false'),
    "documents": _Field("put them into a message"),
    "enable_thinking": _Field('send "chat_template_kwargs": {"enable_thinking": …}', ()),
    "echo": _Field("the last message is known to whoever sent it: leave echo out"),
    "verbosity": _Field("ask for it in a message", (*_UNUSED, "medium")),
    "web_search_options": _Field("leave it out"),
}  # fmt: skip


def refuse_unserved(body: Generating) -> None:
    """Raise ApiError for the first field in use that is not served here."""
    unknown: dict[str, object] = body.model_extra or {}
    for name, field in (_BOTH | _CHAT if isinstance(body, ChatBody) else _BOTH).items():
        value = unknown.get(name)
        # By type as well: 0 is False to Python, and a budget of nothing to a client.
        if value is None or any(value == h and type(value) is type(h) for h in field.harmless):
            continue
        raise unsupported(name, f"{name} is not supported; {field.instead}")
