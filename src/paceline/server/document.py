"""What the OpenAPI document says of bodies and answers: the handlers read and write them."""

from __future__ import annotations

from paceline.server.wire import Generating, Wire

_JSON, _STREAM, _PLAIN = "application/json", "text/event-stream", "text/plain"


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def described(body: type[Wire] | None, path: str) -> dict[str, object]:
    """`openapi_extra` of a route: its path's parameter, its `body`, with every definition in its
    place, and what it answers. An error is an object of OpenAI's shape on every route."""
    kinds = [_PLAIN if path == "/metrics" else _JSON]
    if body is not None and issubclass(body, Generating):
        kinds.append(_STREAM)
    content: dict[str, object] = {kind: {"schema": {}} for kind in kinds}
    answers = {
        "200": {"description": "The answer", "content": content},
        "default": {"description": "An error", "content": {_JSON: {"schema": _ERROR}}},
    }
    extra: dict[str, object] = {"responses": answers}
    if "{name" in path:
        extra["parameters"] = [
            {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if body is not None:
        schema = body.model_json_schema()
        definitions = schema.pop("$defs", {})
        given = {_JSON: {"schema": _resolved(schema, definitions)}}
        extra["requestBody"] = {"required": True, "content": given}
    return extra


def _resolved(value: object, definitions: dict[str, object]) -> object:
    """`value` with its references replaced; none of the bodies is recursive."""
    if isinstance(value, list):
        return [_resolved(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    name = str(value.get("$ref", ""))
    if name:
        return _resolved(definitions[name.rsplit("/", 1)[1]], definitions)
    return {key: _resolved(item, definitions) for key, item in value.items()}
