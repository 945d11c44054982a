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
_Name: TypeAlias = Annotated[str, Field(pattern="^[a-zA-Z0-9_.-]{1,64}$")]
_Effort: TypeAlias = Annotated[str, Field(min_length=1, max_length=32)]
_Texts: TypeAlias = Annotated[list[str], Field(fail_fast=True)]


class Wire(BaseModel):
    """A JSON object: strict about what it knows, deaf to what it does not."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class StreamOptions(Wire):
    """include_usage: a last chunk with the counts. continuous_usage_stats: the counts so far in
    every chunk. include_timing: in every chunk, under `paceline`, what its round did: see
    `details`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
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


class CalledFunction(Wire):
    """Both as the model wrote them; arguments: JSON as text."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: str = "{}"


class ToolCall(Wire):
    """A call that an earlier answer made."""

    id: Annotated[str, Field(max_length=256)] | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Wire):
    """One message. An assistant's may have no content: it called tools, or only reasoned; a tool's
    answers a call."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # another name for the same
    tool_calls: Annotated[list[ToolCall], Field(max_length=128, fail_fast=True)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None
    name: Annotated[str, Field(max_length=256)] | None = None


class Function(Wire):
    """A function that the model may call; parameters: the JSON schema of its arguments."""

    name: _Name
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None


class Tool(Wire):
    type: Literal["function"]
    function: Function


class ChosenFunction(Wire):
    name: _Name


class ToolChoice(Wire):
    """The function that is to be called."""

    type: Literal["function"]
    function: ChosenFunction


_Tools: TypeAlias = Annotated[list[Tool], Field(max_length=128, fail_fast=True)]


class JsonSchema(Wire):
    """A schema with its name; `strict` is taken and changes nothing: every schema binds."""

    name: Annotated[str, Field(pattern="^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, object] | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Wire):
    """What the text must be: OpenAI's, and llama.cpp's with the `schema` right in it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Annotated[dict[str, object] | None, Field(alias="schema")] = None


class StructuredOutputs(Wire):
    """vLLM's, beyond OpenAI's: exactly one of them. grammar: in Lark's notation."""

    json_: Annotated[dict[str, object] | str | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    grammar: str | None = None


class Generating(Wire):
    """What both APIs share. top_k, min_p, repetition_penalty, min_tokens, ignore_eos,
    stop_token_ids, skip_special_tokens, add_special_tokens (beside the prompt's own; by
    default in completions alone), include_stop_str_in_output, return_token_ids (beside the
    text, the prompt's as well), priority (higher goes first), speculative,
    include_metrics (what came of the drafts: see `acceptance`) and structured_outputs go beyond
    OpenAI's. Unknown fields are kept, for `unserved` to look at."""

    model_config = ConfigDict(extra="allow")

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
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prediction: Prediction | None = None
    speculative: Speculative | None = None
    include_metrics: bool | None = None
    priority: Annotated[int, Field(ge=-(1 << 31), le=1 << 31)] | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    logprobs_mode: Literal["raw_logprobs", "processed_logprobs"] | None = None


class CompletionBody(Generating):
    """POST /v1/completions."""

    prompt: (
        str | _Texts | _Tokens | Annotated[list[_Tokens], Field(max_length=2048, fail_fast=True)]
    )
    max_tokens: _Token | None = None  # 0 to read a prompt alone, with echo
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    suffix: str | None = None


class ChatBody(Generating):
    """POST /v1/chat/completions. separate_reasoning (default true: reasoning goes into
    reasoning_content), thinking_token_budget (the most tokens of reasoning), chat_template_kwargs
    (such as {"enable_thinking": false}), add_generation_prompt (default true: the template begins
    the answer) and continue_final_message (the text goes on with the last message) go beyond
    OpenAI's."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: _Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: _Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    separate_reasoning: bool | None = None
    thinking_token_budget: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: _Effort | None = None
    modalities: list[str] | None = None
    functions: list[object] | None = None
    function_call: object = None


class Prompted(Wire):
    """What is read: a prompt, or messages by the chat template."""

    prompt: str | _Tokens | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = None
    tools: _Tools | None = None
    chat_template_kwargs: dict[str, object] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: _Effort | None = None


class WarmBody(Prompted):
    """POST /v1/warm: a prompt, or the messages so far, to be read ahead of the question."""

    model: Annotated[str, Field(min_length=1, max_length=512)]


class TokenizeBody(Prompted):
    """POST /tokenize. return_token_strs: the vocabulary's own spelling of each token as well."""

    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Wire):
    """POST /detokenize."""

    model: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    tokens: _Tokens


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
