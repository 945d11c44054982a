"""A chat template of the operator's, checked before a model is read. Knows no tokenizer."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from paceline import ConfigError
from paceline.files import read_text


class _Generation(Extension):
    """`{% generation %}`, which transformers adds to the language: what is in it, as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def read_template(file: Path) -> str:
    """A Jinja template for chats. Raises ConfigError where the file cannot be read or is none."""
    text = read_text(file, "give a Jinja chat template")
    language = Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"])
    try:
        names = meta.find_undeclared_variables(language.parse(text))
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"{file}: not a chat template: line {error.lineno}: {error.message}"
        ) from error
    if "messages" not in names:
        raise ConfigError(
            f"{file}: not a chat template: it does not use `messages`; give what stands under "
            "chat_template in a tokenizer_config.json, or a chat_template.jinja"
        )
    return text
