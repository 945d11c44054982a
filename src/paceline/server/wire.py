"""The bodies of requests, as clients send them: the only place that knows pydantic.

Known fields are checked strictly (a text is no number, NaN is none either); unknown fields are
ignored, as OpenAI does. What a value means is decided in `asking`.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paceline.server.errors import ApiError, refused

MAX_TOKENS = 1 << 31
_Share: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
_Bias: TypeAlias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
_Count: TypeAlias = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
_Token: TypeAlias = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
# A long list is given up at its first fault: a report of a million costs minutes and gigabytes.
_Tokens: TypeAlias = Annotated[list[_Token], Field(fail_fast=True)]
_Texts: TypeAlias = Annotated[list[str], Field(fail_fast=True)]


class Wire(BaseModel):
    """A JSON object: strict about what it knows, deaf to what it does not."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class StreamOptions(Wire):
    """include_usage: a last chunk with the counts. include_timing: in every chunk, under
    `paceline`, what its round did: see `details`."""

    include_usage: bool | None = None
    include_timing: bool | None = None


class Speculative(Wire):
    """This request's speculation, within what the engine was opened with. The text is the same."""

    enabled: bool | None = None
    k: Annotated[int, Field(ge=0, le=64)] | None = None
    rule: Literal["match", "reject", "block"] | None = None


class Part(Wire):
    """A piece of a message's or prediction's content."""

    type: str
    text: str | None = None


class Prediction(Wire):
    """OpenAI's Predicted Outputs: text that much of the answer is expected to be."""

    type: Literal["content"]
    content: str | Annotated[list[Part], Field(fail_fast=True)]


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    tool_calls: list[object] | None = None


class ResponseFormat(Wire):
    type: str


class Generating(Wire):
    """What both APIs share. top_k, min_p, repetition_penalty, min_tokens, ignore_eos,
    stop_token_ids, priority (higher goes first) and speculative go beyond OpenAI's."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    max_tokens: _Count | None = None
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: _Share | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = None
    min_p: _Share | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: Annotated[dict[str, _Bias], Field(fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=1024)]
        | Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1024)]],
            Field(max_length=16, fail_fast=True),
        ]
        | None
    ) = None
    stop_token_ids: Annotated[list[_Token], Field(max_length=64, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prediction: Prediction | None = None
    speculative: Speculative | None = None
    priority: Annotated[int, Field(ge=-(1 << 31), le=1 << 31)] | None = None
    response_format: ResponseFormat | None = None


class CompletionBody(Generating):
    """POST /v1/completions."""

    prompt: (
        str | _Texts | _Tokens | Annotated[list[_Tokens], Field(max_length=2048, fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    suffix: str | None = None


class ChatBody(Generating):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[object] | None = None
    tool_choice: object = None
    functions: list[object] | None = None
    function_call: object = None
    modalities: list[str] | None = None


class WarmBody(Wire):
    """POST /v1/warm: a prompt, or the messages so far, to be read ahead of the question."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    prompt: str | _Tokens | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None


_Body = TypeVar("_Body", bound=Wire)


def parse(kind: type[_Body], body: bytes) -> _Body:
    """Read a body. Raises ApiError, a 400 that names the field."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _told(error) from None


def _told(error: ValidationError) -> ApiError:
    """One line of what is wrong with the first field at fault."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = found[0]
    if first["type"] == "json_invalid":
        return refused(f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    if not first["loc"]:
        return refused('the body must be a JSON object, for instance {"model": "…"}')
    field = str(first["loc"][0])
    # The members of a union each say what they would have taken: for the reader these are one.
    mine = [item for item in found if item["loc"][:1] == first["loc"][:1]]
    words = list(dict.fromkeys(item["msg"] for item in mine))
    if first["type"] == "missing" and len(first["loc"]) == 1:
        return refused(f"{field!r} is missing", field, "missing_required_parameter")
    place = _path(first["loc"])
    types = any(item["type"].endswith(("_type", "_parsing")) for item in mine)
    said = "; or ".join(word[:1].lower() + word[1:] for word in words[:4])
    code = "invalid_type" if types else "invalid_value"
    return refused(f"invalid {place!r}: {said}", field, code)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[1].content`; the names that pydantic gives to a union's members are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int"):
            path += f".{part}" if path else part
    return path
