"""JSON bodies of requests: lenient parsing, strict validation."""

from __future__ import annotations

import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from fimserver.errors import InputError, first_problem

Body = TypeVar("Body", bound=BaseModel)


class RequestBody(BaseModel):
    """Base of all request bodies: a null field counts as missing."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        return (
            {key: value for key, value in data.items() if value is not None}
            if isinstance(data, dict)
            else data
        )


# Matches whole surrogate pairs, lone surrogates and other escapes, so that lone ones can be recognised.
_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}|\\.",
    re.DOTALL,
)
_HALF_BYTES = 6


def read_json(kind: type[Body], data: bytes) -> Body:
    """Parse and validate a body. A lone surrogate becomes U+FFFD: clients cut text inside an emoji.

    Raises ``InputError`` with the field.
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
