"""Errors that fimserver raises on purpose, as one tree.

FimError
├── InputError           the caller's input cannot be used
│   └── OtherServerError     a URL leads to a server that is not a fimserver host
├── CardError            a model card is wrong
├── ModelError           a model cannot be used
│   ├── ModelMissingError    it is not on this machine
│   ├── DeviceError          the requested device is not available
│   ├── DownloadError        its files cannot be fetched
│   │   ├── SourceError          one source does not have them; another may
│   │   └── DiskFullError        there is no room for them
│   └── LoadError            its files are damaged or do not fit the card
├── RemoteError          a remote server cannot fill a middle
│   ├── AwayError            it cannot be reached, or the connection broke
│   ├── WarmingError         it is loading its model
│   ├── OverloadedError      it has too many requests
│   ├── BadKeyError          it refuses the key
│   ├── WrongModelError      it does not have the model
│   ├── NoFimError           it, or its model, cannot fill middles
│   ├── TooLongError         the prompt is longer than its limit
│   └── GarbledError         it failed, or its response is not an answer
└── NonFiniteError       a model produced NaN or infinity: nothing is shown
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError


class FimError(Exception):
    """Base of all errors. The message is one line and says what to do."""

    exit_code: ClassVar[int] = 1  # of the command line; 2 is for a command or an input that cannot be used


class InputError(FimError):
    """The caller's input cannot be used."""

    exit_code = 2


class OtherServerError(InputError):
    """A URL leads to a server that is not a fimserver host."""


class CardError(FimError):
    """A model card is wrong or does not exist."""

    exit_code = 2


class ModelError(FimError):
    """A model cannot be used."""


class ModelMissingError(ModelError):
    """The model is not on this machine."""


class DeviceError(ModelError):
    """The requested device is not available on this machine."""

    exit_code = 2


class DownloadError(ModelError):
    """The files of a model cannot be fetched."""


class SourceError(DownloadError):
    """A source does not have the files of a model; another one may."""


class DiskFullError(DownloadError):
    """The disk is full. Partial files are kept."""


class LoadError(ModelError):
    """The files of a model are damaged, incomplete or do not fit its card."""


class RemoteError(FimError):
    """A remote server cannot fill a middle. The message quotes nothing from the server."""


class AwayError(RemoteError):
    """The server cannot be reached, or the connection broke during an answer."""


class WarmingError(RemoteError):
    """The server is loading its model."""


class OverloadedError(RemoteError):
    """The server has too many requests."""


class BadKeyError(RemoteError):
    """The server refuses the key."""


class WrongModelError(RemoteError):
    """The server does not have the requested model, or has several and none was requested."""


class NoFimError(RemoteError):
    """The server, or its model, cannot fill middles."""


class TooLongError(RemoteError):
    """The prompt is longer than the server's limit."""


class GarbledError(RemoteError):
    """The server failed, or its response is not an answer."""


class NonFiniteError(FimError):
    """A model produced NaN or infinity."""


def first_problem(error: ValidationError, whole: str) -> str:
    """Return the first wrong field and its problem, without quoting the input.

    ``whole``: name of the input, if the problem is not in a field.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"
