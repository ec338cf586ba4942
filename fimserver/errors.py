"""Errors that fimserver raises on purpose, as one tree.

FimError
├── InputError           what the caller gave cannot be used
│   └── OtherServerError     a URL leads to a server that is no host of fimserver
├── CardError            a model card is wrong
├── ModelError           a model cannot be used
│   ├── ModelMissingError    it is not on this machine
│   ├── DeviceError          the device that was asked for is not there
│   ├── DownloadError        its files cannot be fetched
│   │   ├── SourceError          one source cannot give them; another may
│   │   └── DiskFullError        there is no room for them
│   └── LoadError            its files are damaged or do not fit the card
├── RemoteError          a server elsewhere cannot fill a middle
│   ├── AwayError            it cannot be reached, or broke off
│   ├── WarmingError         it loads its model
│   ├── OverloadedError      it has too much to do
│   ├── BadKeyError          it refuses the key
│   ├── WrongModelError      it does not have the model
│   ├── NoFimError           it, or its model, fills no middles
│   ├── TooLongError         the prompt is longer than it takes
│   └── GarbledError         it failed, or what it sent is no answer
└── NonFiniteError       a model produced NaN or infinity: nothing of it is shown
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ValidationError


class FimError(Exception):
    """The message is one line and says what to do."""

    exit_code: ClassVar[int] = 1  # of the command line; 2 is for a command or an input that cannot be used


class InputError(FimError):
    """What the caller gave cannot be used."""

    exit_code = 2


class OtherServerError(InputError):
    """A URL leads to a server that is no host of fimserver."""


class CardError(FimError):
    """A model card is wrong, or there is none of that name."""

    exit_code = 2


class ModelError(FimError):
    """A model cannot be used."""


class ModelMissingError(ModelError):
    """The model is not on this machine."""


class DeviceError(ModelError):
    """The device that was asked for is not on this machine."""

    exit_code = 2


class DownloadError(ModelError):
    """The files of a model cannot be fetched."""


class SourceError(DownloadError):
    """A source cannot give the files of a model; another one may."""


class DiskFullError(DownloadError):
    """There is no room on the disk. What was fetched is kept."""


class LoadError(ModelError):
    """The files of a model are damaged, incomplete or do not fit its card."""


class RemoteError(FimError):
    """A server elsewhere cannot fill a middle. The message quotes nothing that the server sent."""


class AwayError(RemoteError):
    """The server cannot be reached, or broke off in the middle of an answer."""


class WarmingError(RemoteError):
    """The server loads its model."""


class OverloadedError(RemoteError):
    """The server has too much to do."""


class BadKeyError(RemoteError):
    """The server refuses the key."""


class WrongModelError(RemoteError):
    """The server does not have the model that was asked for, or has several to choose from."""


class NoFimError(RemoteError):
    """The server, or its model, cannot fill middles."""


class TooLongError(RemoteError):
    """The prompt is longer than the server takes."""


class GarbledError(RemoteError):
    """The server failed, or what it sent is no answer."""


class NonFiniteError(FimError):
    """A model produced NaN or infinity."""


def first_problem(error: ValidationError, whole: str) -> str:
    """Which field is wrong, and how; ``whole`` is what to call all of it.

    Quotes nothing of what was given.
    """
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or whole}: {first['msg']}"
