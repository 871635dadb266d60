"""Writes the JSON schema of configurations, `schema.json` beside this file.

    python -m launch.config.schema

`perennial config` and editors read that file: importing the models that it is made of takes
seconds. `tests/launch/test_schema.py` fails where it is not that of the models.
"""

from typing import Any

from data_shards.files import write_atomically
from launch.config.keys import SCHEMA_FILE, json_text
from launch.config.run import RunConfig

_OTHERS = "additionalProperties"
"""What values have whose names a schema does not list."""


def made_schema() -> dict[str, Any]:
    """The schema of the models of keys, for JSON Schema's draft 2020-12."""
    made = _told(RunConfig.model_json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _told(part: Any, at: str = "#") -> Any:
    """A part of pydantic's schema, the one `at` that place, with what it cannot know: that a
    method's name may say its kind.

    Titles, which repeat names, are left out.
    """
    if isinstance(part, list):
        return [_told(inner, f"{at}/{number}") for number, inner in enumerate(part)]
    if not isinstance(part, dict):
        return part
    made = {
        key: " ".join(value.split()) if key == "description" and isinstance(value, str) else value
        for key, value in part.items()
        if key != "title" or not isinstance(value, str)
    }
    values = made.get(_OTHERS)
    if isinstance(values, dict) and "discriminator" in values:
        kinds = values["discriminator"]["mapping"]
        made["properties"] = {
            name: {"anyOf": [{"$ref": kind}, {"type": "null"}, {"$ref": f"{at}/{_OTHERS}"}]}
            for name, kind in kinds.items()
        }
        made[_OTHERS] = {**values, "required": ["kind"]}
    return {key: _told(value, f"{at}/{key}") for key, value in made.items()}


if __name__ == "__main__":
    write_atomically(SCHEMA_FILE, json_text(made_schema()).encode())
