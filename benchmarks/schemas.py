"""Over 200 JSON schemas of the kinds that people write, each with a question that it answers:
flat and nested objects, arrays, enums, patterns, formats, limits, unions, ``$ref``, recursion."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_STRING: Schema = {"type": "string", "maxLength": 24}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 999}
_PRICE: Schema = {"type": "number", "minimum": 0, "maximum": 10000}
_FLAG: Schema = {"type": "boolean"}
_TAGS: Schema = {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3}
_DATE: Schema = {"type": "string", "pattern": "^20[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9])$"}
_NULLABLE: Schema = {"type": ["string", "null"], "maxLength": 16}

# What people extract: the name of a thing, and its fields.
_THINGS: dict[str, dict[str, Schema]] = {
    "person": {"name": _STRING, "age": _COUNT, "email": _NULLABLE},
    "book": {"title": _STRING, "author": _STRING, "pages": _COUNT, "published": _DATE},
    "recipe": {"dish": _STRING, "minutes": _COUNT, "ingredients": _TAGS, "vegan": _FLAG},
    "invoice": {"number": _COUNT, "total": _PRICE, "paid": _FLAG, "due": _DATE},
    "city": {"name": _STRING, "population": _COUNT, "capital": _FLAG, "twin": _NULLABLE},
    "event": {"title": _STRING, "date": _DATE, "guests": _TAGS},
    "product": {"name": _STRING, "price": _PRICE, "stock": _COUNT, "tags": _TAGS},
    "song": {"title": _STRING, "seconds": _COUNT, "live": _FLAG},
    "ticket": {"summary": _STRING, "votes": _COUNT, "labels": _TAGS, "closed": _FLAG},
    "measurement": {"sensor": _STRING, "value": _PRICE, "valid": _FLAG},
    "flight": {"from": _STRING, "to": _STRING, "date": _DATE, "stops": _COUNT},
    "review": {"text": _STRING, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
}

_ENUMS = {
    "sentiment": ["positive", "negative", "neutral"],
    "priority": ["low", "medium", "high", "critical"],
    "size": [1, 2, 3, 5, 8],
    "answer": [True, False, None],
    "language": ["en", "de", "fr", "日本語", "русский"],
    "quoted": ['say "yes"', "back\\slash", "line\nbreak", "it's", "é"],
    "mixed": ["none", 0, 1.5, None, {"kind": "other"}, [1, 2]],
    "weekday": ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"],
}

_PATTERNS = {
    "phone": r"^\+[1-9][0-9]{7,11}$",
    "plate": r"^[A-Z]{2}-[0-9]{3}-[A-Z]{2}$",
    "time": r"^([01][0-9]|2[0-3]):[0-5][0-9]$",
    "colour": r"^#[0-9a-f]{6}$",
    "slug": r"^[a-z0-9]+(-[a-z0-9]+){0,3}$",
    "version": r"^(0|[1-9][0-9]?)\.(0|[1-9][0-9]?)\.(0|[1-9][0-9]?)$",
    "name": r"^[A-Z][a-z]{1,8}( [A-Z][a-z]{1,10}){0,2}$",
    "code": r"^(AB|CD|EF)[0-9]{4}$",
    "postcode": r"^[0-9]{5}(-[0-9]{4})?$",
    "umlauts": r"^[äöüß]{2,5}$",
    "word": r"^\w{1,10}$",
    "sentence": r"^[A-Z][a-z ,]{5,40}[.!?]$",
}

_FORMATS = ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "uri")

_LIMITS: dict[str, Schema] = {
    "percent": {"type": "integer", "minimum": 0, "maximum": 100},
    "negative": {"type": "integer", "minimum": -50, "maximum": -1},
    "open-integer": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
    "ratio": {"type": "number", "minimum": 0, "maximum": 1},
    "temperature": {"type": "number", "minimum": -40.5, "maximum": 60.25},
    "open-number": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2.5},
    "dozens": {"type": "integer", "multipleOf": 12, "minimum": 0, "maximum": 240},
    "unbounded": {"type": "integer"},
    "at-least": {"type": "integer", "minimum": 1000},
    "short": {"type": "string", "maxLength": 5},
    "long": {"type": "string", "minLength": 20, "maxLength": 40},
    "exact": {"type": "string", "minLength": 7, "maxLength": 7},
    "not-empty": {"type": "string", "minLength": 1, "maxLength": 30},
    "pair": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
    "some": {"type": "array", "items": _FLAG, "minItems": 1, "maxItems": 4},
    "none": {"type": "array", "items": _COUNT, "maxItems": 0},
}


def _object(fields: dict[str, Schema], **others: Any) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
        **others,
    }


def _of_things() -> dict[str, Schema]:
    schemas: dict[str, Schema] = {}
    for name, fields in _THINGS.items():
        thing = _object(fields)
        first, *others = fields
        tail = [{"$ref": "#/$defs/node"}, {"type": "null"}]
        schemas |= {
            f"{name}: flat": thing,
            f"{name}: optional fields": {**thing, "required": [first]},
            f"{name}: any others": _object(fields, additionalProperties=_COUNT, maxProperties=6),
            f"{name}: list": {"type": "array", "items": thing, "minItems": 1, "maxItems": 3},
            f"{name}: nested": _object({"id": _COUNT, "data": _object({name: thing})}),
            f"{name}: $ref": _object(
                {"main": {"$ref": "#/$defs/thing"}, "other": {"$ref": "#/$defs/thing"}},
                **{"$defs": {"thing": thing}},
            ),
            f"{name}: or nothing": {"anyOf": [thing, {"type": "null"}]},
            f"{name}: linked": {
                "$ref": "#/$defs/node",
                "$defs": {"node": _object({first: fields[first], "next": {"anyOf": tail}})},
            },
            f"{name}: all of": _object({"all": {"allOf": [thing, {"required": others}]}}),
        }
    return schemas


def _of_unions() -> dict[str, Schema]:
    shapes = {
        "circle": _object({"kind": {"const": "circle"}, "radius": _PRICE}),
        "square": _object({"kind": {"const": "square"}, "side": _PRICE}),
        "label": _object({"kind": {"const": "label"}, "text": _STRING}),
    }
    tree = _object({"value": _COUNT, "children": {"type": "array", "maxItems": 2}})
    tree["properties"]["children"]["items"] = {"$ref": "#"}
    tools = [
        _object({"tool": {"const": tool}, "arguments": _object(fields)})
        for tool, fields in (("search", {"query": _STRING}), ("open", {"page": _COUNT}))
    ]
    return {
        "union: any of": {"anyOf": list(shapes.values())},
        "union: one of": {"oneOf": list(shapes.values())},
        "union: list": {"type": "array", "items": {"anyOf": list(shapes.values())}, "maxItems": 4},
        "union: $defs": {
            "anyOf": [{"$ref": f"#/$defs/{name}"} for name in shapes],
            "$defs": shapes,
        },
        "union: of types": {"type": ["integer", "string", "boolean", "null"], "maxLength": 9},
        "union: in a field": _object({"id": {"anyOf": [_COUNT, _DATE]}, "flag": _FLAG}),
        "union: tools": {"anyOf": tools},
        "tree": tree,
        "tuple": {"type": "array", "prefixItems": [_STRING, _COUNT, _FLAG], "items": False}
        | {"minItems": 3},
        "constant": {"const": {"ok": True, "items": [1, "two", None]}},
        "matrix": {
            "type": "array",
            "items": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
            "minItems": 2,
            "maxItems": 3,
        },
        "map": {"type": "object", "additionalProperties": _FLAG, "maxProperties": 3},
        "pattern properties": {
            "type": "object",
            "patternProperties": {"^x-[a-z]{1,6}$": _STRING},
            "additionalProperties": False,
            "maxProperties": 3,
        },
        "any object": {"type": "object"},
        "deep": _object({"a": _object({"b": _object({"c": _object({"d": _COUNT})})})}),
        "titles and descriptions": _object(
            {"name": {**_STRING, "title": "Name", "description": "Of whom", "examples": ["Ada"]}},
            title="Person",
            description="As pydantic writes it",
        ),
        "default": _object({"unit": {"enum": ["C", "F"], "default": "C"}}),
    }


def all_schemas() -> dict[str, Schema]:
    """Over 200 schemas, by what they describe."""
    schemas = _of_things() | _of_unions()
    for kind, values in _ENUMS.items():
        schemas[f"enum {kind}"] = {"enum": values}
        schemas[f"enum {kind}: field"] = _object({kind: {"enum": values}, "why": _STRING})
        several = {"type": "array", "items": {"enum": values}, "maxItems": 3}
        schemas[f"enum {kind}: several"] = _object({kind: several})
    for kind, pattern in _PATTERNS.items():
        text = {"type": "string", "pattern": pattern}
        schemas[f"pattern {kind}"] = text
        schemas[f"pattern {kind}: field"] = _object({kind: text, "other": _NULLABLE})
    for name in _FORMATS:
        schemas[f"format {name}"] = _object({"value": {"type": "string", "format": name}})
    for kind, limited in _LIMITS.items():
        schemas[f"limit {kind}"] = limited
        schemas[f"limit {kind}: field"] = _object({"id": _COUNT, "value": limited})
    return schemas


def question(name: str) -> str:
    """What a chat is asked, for an answer of that schema."""
    return f"Give me an example of this as JSON, and nothing else: {name}."
