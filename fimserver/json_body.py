"""JSON bodies of requests: parsed leniently, checked strictly."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fimserver.errors import InputError, first_problem

Body = TypeVar("Body", bound=BaseModel)


class RequestBody(BaseModel):
    """Base of everything a client sends: a field that is null counts as not given."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return (
            {key: value for key, value in data.items() if value is not None}
            if isinstance(data, dict)
            else data
        )


# A \u escape that is half of a surrogate pair, told from whole pairs and from other escapes.
_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\.",
    re.DOTALL,
)
_HALF_BYTES = 6


def read_json(kind: type[Body], data: bytes) -> Body:
    """Parse and check a body. Half a surrogate pair becomes U+FFFD: clients cut text within an emoji.

    Raises ``InputError`` that names the field.
    """
    try:
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            if error.errors(include_url=False)[0]["type"] != "json_invalid":
                raise
            return kind.model_validate_json(_ESCAPES.sub(_whole_characters, data))
    except ValidationError as error:
        raise InputError(first_problem(error, "body")) from None


def _whole_characters(match: re.Match[bytes]) -> bytes:
    found = match[0]
    return rb"\ufffd" if len(found) == _HALF_BYTES and found[2:3] in b"dD" else found
