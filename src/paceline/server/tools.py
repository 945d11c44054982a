"""Tools: what a request says of them, in the words of chat templates and of grammars.

The formats themselves are in `tool_families`; what a model has written is read by `tool_formats`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from paceline import Engine, Grammar
from paceline.server.errors import refused, unsupported
from paceline.server.reasoning import Marks, marks_of
from paceline.server.structured import checked
from paceline.server.tool_families import FAMILIES, calls_grammar, family_of
from paceline.server.wire import ChatBody, Message, Part, Tool, ToolCall, ToolChoice

_Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What one model writes in chats. template: of chats with tools; family: of its tool calls, or
    None; marks: of its reasoning, or None; special: ids of special tokens by name."""

    template: str
    family: str | None
    marks: Marks | None
    special: dict[str, int]

    @classmethod
    def of(cls, engine: Engine, parser: str, reasoning: bool) -> ChatFormat:
        """parser: a family, `auto` or `none`; reasoning: whether it is told from the answer."""
        tokenizer = engine.tokenizer
        plain, template = tokenizer.chat_template(), tokenizer.chat_template(tools=True)
        family = family_of(template) if parser == "auto" else parser
        special = {tokenizer.token(i) or "": i for i in tokenizer.special_ids}
        return cls(
            template,
            None if family == "none" else family,
            marks_of(plain) if reasoning else None,
            special,
        )

    @property
    def tokens_hidden(self) -> bool:
        """Whether marks of the formats are special tokens, which a text shows only when asked."""
        tokens = list(FAMILIES[self.family].tokens) if self.family else []
        tokens += [self.marks.begin, self.marks.end] if self.marks else []
        return any(token in self.special for token in tokens)


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of one request, checked. forced: those of which one must be called, or none."""

    given: tuple[Tool, ...]
    family: str
    forced: tuple[Tool, ...]
    several: bool

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(tool.function.name for tool in self.given)

    def grammar(self, engine: Engine, formats: ChatFormat, other: Grammar | None) -> Grammar | None:
        """What the answer must be: calls where one is forced, else `other`, and where that is given
        calls in its place. Raises ApiError."""
        if not self.forced and other is None:
            return None
        if self.forced and other is not None:
            message = "tool_choice forces a call, and response_format something else: leave one"
            raise refused(message, "response_format", "invalid_value")
        which = self.forced or self.given
        for tool in which:
            schema = tool.function.parameters
            if schema is not None:
                name = f"tools: the parameters of {tool.function.name!r}"
                checked(engine, Grammar("json_schema", json.dumps(schema)), "tools", name)
        functions = {tool.function.name: tool.function.parameters for tool in which}
        text = calls_grammar(
            self.family,
            formats.template,
            functions,
            self.several,
            formats.special,
            None if other is None else _rule(other),
        )
        return Grammar("lark", text)


def _rule(grammar: Grammar) -> str:
    """A grammar as the right side of a rule. Raises ApiError."""
    if grammar.kind == "regex":
        return "/" + grammar.text.replace("/", "\\/").replace("\n", "\\n") + "/"
    if grammar.kind == "lark":
        message = "a grammar together with tools is not supported: leave one, or set tool_choice"
        raise unsupported("structured_outputs", message)
    schema = json.loads(grammar.text) if grammar.text else {"type": "object"}
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})


def asked_tools(body: ChatBody, formats: ChatFormat) -> Tools | None:
    """The request's tools, or None where no call can come of it. Raises ApiError."""
    if body.functions or body.function_call not in (None, "none", "auto"):
        raise unsupported("functions", "functions are not supported; send them as tools")
    choice, given = body.tool_choice, tuple(body.tools or ())
    if not given:
        if choice not in (None, "none", "auto"):
            raise refused("tool_choice needs tools", "tool_choice", "invalid_value")
        return None
    names = [tool.function.name for tool in given]
    if len(set(names)) < len(names):
        raise refused("two tools have the same name", "tools", "invalid_value")
    if choice == "none":
        return None
    if formats.family is None:
        message = (
            "this model's chat template has no format of tool calls that is known here; where it "
            "writes one, serve it with --tool-parser"
        )
        raise unsupported("tools", message)
    forced: tuple[Tool, ...] = given if choice == "required" else ()
    if isinstance(choice, ToolChoice):
        forced = tuple(tool for tool in given if tool.function.name == choice.function.name)
        if not forced:
            message = f"tool_choice names {choice.function.name!r}, which is not among the tools"
            raise refused(message, "tool_choice", "invalid_value")
    several = body.parallel_tool_calls is not False and not isinstance(choice, ToolChoice)
    return Tools(given, formats.family, forced, several)


def described(tools: Sequence[Tool]) -> list[_Json]:
    """Tools as chat templates take them."""
    return [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in tools]


def messages(given: Sequence[Message]) -> list[_Json]:
    """Messages as chat templates take them. Raises ApiError."""
    taken = []
    for place, message in enumerate(given):
        where = f"messages[{place}]"
        if message.role == "function":
            raise unsupported(where, "the role 'function' is not supported; 'tool' is")
        if message.tool_calls and message.role != "assistant":
            raise refused("only an assistant's message has tool_calls", where, "invalid_value")
        # The newer name of the same role; templates know the older one.
        role = "system" if message.role == "developer" else message.role
        one: _Json = {"role": role}
        if message.content is None and message.role == "assistant":
            one["content"] = ""
        else:
            one["content"] = text_of(message.content, f"{where}.content")
        if message.tool_calls:
            one["tool_calls"] = [_call(call) for call in message.tool_calls]
        for name, value in (
            ("reasoning_content", _reasoning(message, where)),
            ("tool_call_id", message.tool_call_id),
            ("name", message.name),
        ):
            if value is not None:
                one[name] = value
        taken.append(one)
    return taken


def _reasoning(message: Message, where: str) -> str | None:
    """An earlier answer's reasoning, under whichever name; templates know it by one."""
    content, other = message.reasoning_content, message.reasoning
    if None not in (content, other) and content != other:
        told = "reasoning_content and reasoning are not the same text: leave one"
        raise refused(told, where, "invalid_value")
    return other if content is None else content


def _call(call: ToolCall) -> _Json:
    """Templates write the arguments themselves: as an object, wherever they are one."""
    arguments: object = call.function.arguments
    try:
        value = json.loads(call.function.arguments)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        arguments = value
    one: _Json = {
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }
    return one if call.id is None else {"id": call.id, **one}


def text_of(content: str | list[Part] | None, where: str) -> str:
    """The text of a content that may come in parts."""
    if isinstance(content, list):
        for part in content:
            if part.type != "text" or part.text is None:
                raise unsupported(where, f"content of type {part.type!r} is not supported; text is")
        return "".join(part.text or "" for part in content)
    if content is None:
        raise refused("a message needs content", where, "missing_required_parameter")
    return content
