"""The JSON Schema of the manifest, for editors that check while one types.

It is looser than the decoder: what a schema cannot say (names unique over files, values that fit
their map) only the program checks.
"""

from typing import assert_never

from bpfkeeperd.fieldkinds import (
    Boolean,
    Either,
    Field,
    Integer,
    Kind,
    ListOf,
    MapOf,
    Raw,
    Struct,
    Text,
    Word,
)
from bpfkeeperd.fields import MANIFEST, TYPE_SCHEMA

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, object]


def json_schema() -> dict[str, object]:
    """The schema of the main file; a drop-in has its ``maps`` and ``objects``."""
    head: Schema = {
        "$schema": DIALECT,
        "title": "bpfkeeperd manifest",
        "$defs": {"type": TYPE_SCHEMA},
    }
    return {**head, **_of(MANIFEST)}


def _of(kind: Kind) -> Schema:
    match kind:
        case Text(pattern=pattern, digits=True):
            return {"type": ["string", "integer"], "pattern": pattern, "minimum": 0}
        case Text(pattern=pattern):
            return {"type": "string", "pattern": pattern} if pattern else _nonempty()
        case Integer(low=low, high=high) if low == high:
            return {"const": low}
        case Integer(low=low, high=high):
            return {"type": "integer", "minimum": low, "maximum": high}
        case Boolean():
            return {"type": "boolean"}
        case Word(choices=choices):
            return {"enum": [str(choice) for choice in choices]}
        case ListOf(item=item):
            return {"type": ["array", "null"], "items": _of(item)}
        case MapOf(value=value):
            names = {"minLength": 1}
            return {
                "type": ["object", "null"],
                "propertyNames": names,
                "additionalProperties": _of(value),
            }
        case Struct():
            return _of_struct(kind)
        case Either(kinds=kinds):
            return {"anyOf": [_of(one) for one in kinds]}
        case Raw(schema=schema):
            return dict(schema)
        case _:
            assert_never(kind)


def _nonempty() -> Schema:
    return {"type": "string", "minLength": 1}


def _of_struct(kind: Struct) -> Schema:
    required = [field.name for field in kind.fields if field.required]
    schema: Schema = {
        # Nothing written is an empty mapping, where an empty mapping is enough.
        "type": "object" if required or kind.one_of else ["object", "null"],
        "properties": {field.name: _of_field(field) for field in kind.fields},
        "additionalProperties": False,
    }
    needs = {field.name: list(field.needs) for field in kind.fields if field.needs}
    if required:
        schema["required"] = required
    if kind.one_of:
        chosen = [{"required": [name]} for name in kind.one_of]
        others = [{"required": [name], "not": {"anyOf": chosen}} for name in kind.alone]
        schema["oneOf"] = [*chosen, *others]
    beside = {field.name: _beside(kind, field) for field in kind.fields if field.beside}
    if beside:
        schema["dependentSchemas"] = beside
    if needs:
        schema["dependentRequired"] = needs
    return schema


def _beside(kind: Struct, field: Field) -> Schema:
    """One of the fields that go with it is there, or none where it stands alone."""
    anyone: list[Schema] = [{"required": [name]} for name in field.beside]
    if field.name in kind.alone:
        anyone.append({"not": {"anyOf": [{"required": [name]} for name in kind.one_of]}})
    return {"anyOf": anyone}


def _of_field(field: Field) -> Schema:
    schema = {"description": field.doc, **_of(field.kind)}
    if field.default is not None:
        schema["default"] = str(field.default) if isinstance(field.default, str) else field.default
    return schema
