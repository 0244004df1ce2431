"""The JSON Schema: it takes what the decoder takes and sees the mistakes of structure."""

import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
import yaml

from bpfkeeperd import fields
from bpfkeeperd.fieldkinds import Either, Field, Kind, ListOf, MapOf, Struct
from bpfkeeperd.schema import json_schema

MANIFESTS = Path(__file__).parents[1] / "manifests"

MISTAKES_OF_STRUCTURE = (
    "attach_both",
    "attach_neither",
    "attach_netns_with_cgroup",
    "attach_not_a_list",
    "attach_string",
    "defaults",
    "entries_do_not_fit",
    "enumeration",
    "file_missing",
    "flags",
    "inner_maps",
    "integers",
    "interface_names",
    "map_definition_without_type",
    "map_type",
    "maps_a_list",
    "migrate",
    "null_values",
    "object_names",
    "pin_maps_form",
    "pin_root",
    "policy_in_an_object",
    "program_types",
    "renames",
    "several",
    "sha256",
    "shapes",
    "top_is_a_list",
    "top_is_text",
    "unknown_field",
    "version_missing",
    "version_other",
    "version_text",
)


def faults(path: Path) -> list[str]:
    validator = jsonschema.Draft202012Validator(json_schema())
    document = yaml.safe_load(path.read_text())
    return [error.message for error in validator.iter_errors(document)]


def all_fields(kind: Kind = fields.MANIFEST) -> Iterator[Field]:
    match kind:
        case Struct():
            for field in kind.fields:
                yield field
                yield from all_fields(field.kind)
        case ListOf(item=inner) | MapOf(value=inner):
            yield from all_fields(inner)
        case Either(kinds=kinds):
            for one in kinds:
                yield from all_fields(one)
        case _:
            pass


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", sorted((MANIFESTS / "good").glob("*.yaml")), ids=lambda p: p.stem)
def test_it_takes_good_manifests(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize("name", MISTAKES_OF_STRUCTURE)
def test_it_sees_mistakes_of_structure(name: str) -> None:
    assert faults(MANIFESTS / "bad" / f"{name}.yaml")


def test_it_describes_every_field() -> None:
    described = re.findall("'description': ", str(json_schema()))
    assert len(described) == len(list(all_fields())) > 20
    assert all(field.doc.endswith(".") for field in all_fields())


def test_what_a_field_needs_is_beside_it() -> None:
    def check(kind: Kind) -> None:
        if isinstance(kind, Struct):
            names = {field.name for field in kind.fields}
            assert len(names) == len(kind.fields)
            assert names.issuperset(kind.one_of)
            assert names.isdisjoint(kind.elsewhere)
            assert all(names.issuperset(field.needs) for field in kind.fields)

    check(fields.MANIFEST)
    check(fields.DROP_IN)
    for field in all_fields():
        kind = field.kind
        while isinstance(kind, ListOf | MapOf):
            kind = kind.item if isinstance(kind, ListOf) else kind.value
        check(kind)
