#!/usr/bin/env python3
"""Writes a JSON schema for each kind of a Kubernetes version, for kubeconform.

usage: kubernetes-schemas.py OPENAPI_JSON FOLDER

OPENAPI_JSON is api/openapi-spec/swagger.json of Kubernetes. Each schema contains all definitions it refers to and
rejects unknown fields, so that misspelt ones are found.
"""

import json
import pathlib
import sys
from collections.abc import Iterator

REFERENCE = "#/definitions/"
# The published schemas do not say that these may be numbers too.
NUMBER_OR_STRING = {"oneOf": [{"type": "string"}, {"type": "number"}]}
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"


def strict(schema: dict) -> dict:
    """Return the schema without room for fields that it doesn't name."""
    if schema.get("format") == "int-or-string":
        return NUMBER_OR_STRING
    result = {key: value for key, value in schema.items() if not key.startswith("x-")}
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), dict):
            result[key] = strict(result[key])
    if "properties" in result:
        result["properties"] = {name: strict(value) for name, value in result["properties"].items()}
        result.setdefault("additionalProperties", False)
    return result


def references(schema: object) -> Iterator[str]:
    """Yield the names of the definitions that the schema refers to."""
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].removeprefix(REFERENCE)
        schema = list(schema.values())
    if isinstance(schema, list):
        for item in schema:
            yield from references(item)


def main() -> None:
    published = json.loads(pathlib.Path(sys.argv[1]).read_text())["definitions"]
    folder = pathlib.Path(sys.argv[2])
    definitions = {name: strict(schema) for name, schema in published.items()} | {QUANTITY: NUMBER_OR_STRING}
    for name, schema in published.items():
        kinds = schema.get("x-kubernetes-group-version-kind", [])
        if len(kinds) != 1 or "metadata" not in schema.get("properties", {}):
            continue
        needed, waiting = set(), [name]
        while waiting:
            current = waiting.pop()
            if current not in needed:
                needed.add(current)
                waiting.extend(references(definitions[current]))
        group, version, kind = kinds[0]["group"].split(".")[0], kinds[0]["version"], kinds[0]["kind"]
        suffix = f"{group}-{version}" if group else version
        content = {"$ref": REFERENCE + name, "definitions": {name: definitions[name] for name in sorted(needed)}}
        (folder / f"{kind}-{suffix}.json".lower()).write_text(json.dumps(content))


main()
