"""What the OpenAPI document says of a request's body: the handlers read bodies themselves."""

from __future__ import annotations

from paceline.server.wire import Wire


def described(body: type[Wire] | None) -> dict[str, object] | None:
    """`openapi_extra` of a route whose body is `body`, with every definition in its place."""
    if body is None:
        return None
    schema = body.model_json_schema()
    definitions = schema.pop("$defs", {})
    content = {"application/json": {"schema": _resolved(schema, definitions)}}
    return {"requestBody": {"required": True, "content": content}}


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
