"""Knows every way in which we fail on purpose. Knows nothing of how a failure is shown.

FimError
├── InputError           what the caller gave cannot be used
├── CardError            a model card is wrong
├── ModelError           a model cannot be used
│   ├── ModelMissingError    it is not on this machine
│   └── LoadError            its files are damaged or do not fit the card
└── NonFiniteError       a model produced NaN or infinity: nothing of it is shown
"""


class FimError(Exception):
    """The message is one line and says what to do."""


class InputError(FimError):
    """What the caller gave cannot be used."""


class CardError(FimError):
    """A model card is wrong."""


class ModelError(FimError):
    """A model cannot be used."""


class ModelMissingError(ModelError):
    """The model is not on this machine."""


class LoadError(ModelError):
    """The files of a model are damaged, incomplete or do not fit its card."""


class NonFiniteError(FimError):
    """A model produced NaN or infinity."""
