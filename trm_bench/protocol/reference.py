"""What a protocol may say, as a JSON schema with the descriptions of the docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from trm_bench.protocol.schema import Protocol


def described(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What a block's docstring says: of the block, and of each of its keys."""
    about, _, attributes = inspect.cleandoc(model.__doc__ or "").partition("\n\nAttributes:\n")
    entries = re.split(r"\n(?= {4}\S)", f"\n{attributes}")[1:]
    pairs = (" ".join(entry.split()).partition(": ") for entry in entries)
    return " ".join(about.split()), {key: text for key, _, text in pairs}


class _Described(GenerateJsonSchema):
    """Pydantic's schema, with descriptions and every default."""

    def model_schema(self, schema: Any) -> JsonSchemaValue:
        found = super().model_schema(schema)
        model = schema["cls"]
        found["description"], keys = described(model)
        for key, entry in found.get("properties", {}).items():
            entry["description"] = keys.get(key, "")
            field = model.model_fields[key]
            if not field.is_required():  # pydantic leaves out what a factory makes
                entry.setdefault("default", field.get_default(call_default_factory=True))
        # What a protocol does not say may come from the one that it extends.
        found.pop("required", None)
        return found

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The schema of a protocol's file, for editors: with `extends`, all else may be left out.

    `trm-bench check` knows more: what must not go together, and what the data have.
    """
    schema = Protocol.model_json_schema(schema_generator=_Described)
    needed = [key for key, field in Protocol.model_fields.items() if field.is_required()]
    own = {
        "extends": {
            "type": "string",
            "default": None,
            "description": "A bundled protocol, or a file beside this one or below it: it says "
            "all that this one does not.",
        },
        "x-shared": {"default": None, "description": "A place for YAML anchors; not read."},
    }
    properties = {**own, **schema["properties"]}
    method = properties["methods"]
    short = {"type": "string", "description": "The name alone: all else is the default."}
    properties["methods"] = {**method, "items": {"anyOf": [short, method["items"]]}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "A protocol of trm-bench",
        "properties": properties,
        "anyOf": [{"required": ["extends"]}, {"required": needed}],
    }
