"""Texts to token ids and back, as the model that is served reads them: vLLM's two paths.

Nothing is asked of the engine but its tokenizer and its limits.
"""

from __future__ import annotations

from collections.abc import Sequence

from paceline import Engine
from paceline.server.errors import refused
from paceline.server.house import House
from paceline.server.prompts import given_prompt
from paceline.server.wire import DetokenizeBody, TokenizeBody


def tokenized(body: TokenizeBody, engine: Engine, house: House) -> dict[str, object]:
    """The ids that a completion or a chat of the same fields would have for its prompt, however
    many. Raises ApiError and the engine's errors."""
    ids = given_prompt(body, engine, house.template)
    _check(ids, engine, "prompt")
    told: dict[str, object] = {
        "count": len(ids),
        "max_model_len": engine.limits.max_length,
        "tokens": ids,
    }
    if body.return_token_strs:
        told["token_strs"] = [engine.tokenizer.token(token) or "" for token in ids]
    return told


def detokenized(body: DetokenizeBody, engine: Engine) -> dict[str, object]:
    """The text of ids, special tokens by their names. Raises ApiError."""
    _check(body.tokens, engine, "tokens")
    return {"prompt": engine.tokenizer.decode(body.tokens, skip_special_tokens=False)}


def _check(ids: Sequence[int], engine: Engine, param: str) -> None:
    size = engine.limits.vocab_size
    for token in ids:
        if token >= size:
            message = f"the token {token} is none of this model's, whose ids end at {size - 1}"
            raise refused(message, param, "invalid_value")
