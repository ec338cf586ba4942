"""Reason codes: why a completion ended, or why there is none."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a completion ended where it did, or why nothing is shown.

    ``EXPLANATIONS`` has the sentence for each.
    """

    # where a middle ended
    END = "end"
    SUFFIX = "suffix"
    SCOPE = "scope"
    STATEMENT = "statement"
    REPEATED = "repeated"
    LINE = "line"
    BLOCK = "block"
    LENGTH = "length"
    DEADLINE = "deadline"
    EMPTY = "empty"
    # it is no longer wanted
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    STALE = "stale"
    # it was not requested
    OFF = "off"
    NOT_OPEN = "not_open"
    DIRTY = "dirty"
    TOO_LARGE = "too_large"
    EXCLUDED = "excluded"
    GENERATED = "generated"
    MID_WORD = "mid_word"
    ON_DEMAND = "on_demand"
    SNOOZED = "snoozed"
    BATTERY = "battery"
    ENOUGH = "enough"
    # it could not be generated
    BAD_INPUT = "bad_input"
    LOADING = "loading"
    NO_MODEL = "no_model"
    NO_HOST = "no_host"
    OVERLOADED = "overloaded"
    PAUSED = "paused"
    HOST_FAILED = "host_failed"
    REFUSED = "refused"
    OUT_OF_MEMORY = "out_of_memory"
    NON_FINITE = "non_finite"
    AWAY = "away"
    BAD_KEY = "bad_key"
    WRONG_MODEL = "wrong_model"
    NO_FIM = "no_fim"
    TOO_LONG = "too_long"
    GARBLED = "garbled"
    FAILED = "failed"
    # it was generated but is not good enough to show
    BLANK = "blank"
    CONTROL = "control"
    DUPLICATE = "duplicate"
    REPETITION = "repetition"
    SYNTAX = "syntax"
    NO_OP = "no_op"
    POPUP = "popup"
    REJECTED = "rejected"
    UNFINISHED = "unfinished"
    CUT_OFF = "cut_off"
    UNSURE = "unsure"


EXPLANATIONS: dict[Reason, str] = {
    Reason.END: "the model said that the middle is complete",
    Reason.SUFFIX: "the text had reached what is after the cursor",
    Reason.SCOPE: "the block or the brackets that the cursor is in were closed",
    Reason.STATEMENT: "one line was meant, and its statement is complete",
    Reason.REPEATED: "a line came a second time",
    Reason.LINE: "the stop rule: one line",
    Reason.BLOCK: "the stop rule: the block ended",
    Reason.LENGTH: "the token limit",
    Reason.DEADLINE: "time was up; what was good by then is given",
    Reason.EMPTY: "the model thinks that nothing belongs here",
    Reason.CANCELLED: "the editor cancelled the request",
    Reason.SUPERSEDED: "a newer request for this document took its place",
    Reason.STALE: "the document changed before the answer came",
    Reason.OFF: "completions are switched off, by a setting or by the command fimserver.toggle",
    Reason.NOT_OPEN: "the editor never opened this document with the server",
    Reason.DIRTY: "an edit could not be applied, so the text is not known: close and reopen the file",
    Reason.TOO_LARGE: "the file is too large, or has too long a line",
    Reason.EXCLUDED: "the file may hold secrets, or .gitignore or .fimignore names it",
    Reason.GENERATED: "the file is generated, minified or not text",
    Reason.MID_WORD: "the cursor is inside a word: ask explicitly to complete here",
    Reason.ON_DEMAND: "the setting trigger is onDemand: ask explicitly to complete here",
    Reason.SNOOZED: "suggestions are snoozed for a while: ask explicitly to complete here",
    Reason.BATTERY: (
        "the machine runs on battery or saves power, and the setting battery is off: ask explicitly"
    ),
    Reason.ENOUGH: (
        "the last minute has shown as many suggestions as the setting shownPerMinute allows: ask explicitly"
    ),
    Reason.BAD_INPUT: "the request cannot be used",
    Reason.LOADING: "the model is being loaded",
    Reason.NO_MODEL: "the model cannot be loaded: run fimserver doctor",
    Reason.OVERLOADED: "the host, or its model's server, has too many requests: try again in a moment",
    Reason.PAUSED: "the host is paused and gave its memory back: ask explicitly to go on",
    Reason.NO_HOST: "the model host cannot be reached; it is being restarted",
    Reason.HOST_FAILED: "the model host died three times in three minutes: ask explicitly to try again",
    Reason.REFUSED: "the host refused the request: check --connect and its token",
    Reason.OUT_OF_MEMORY: "the device ran out of memory: use a smaller model",
    Reason.NON_FINITE: "the model produced NaN or infinity",
    Reason.AWAY: "the server that has the model cannot be reached, or broke off: is it running?",
    Reason.BAD_KEY: "the server that has the model refuses the key: check FIMSERVER_REMOTE_KEY or the card",
    Reason.WRONG_MODEL: "the server does not have the model that the card names",
    Reason.NO_FIM: "the server, or its model, cannot fill middles: run fimserver doctor",
    Reason.TOO_LONG: "the prompt is longer than the server takes: lower prompt_tokens in the card",
    Reason.GARBLED: "the server that has the model failed, or sent what is no answer",
    Reason.FAILED: "something failed inside fimserver: its log names the place",
    Reason.BLANK: "only blanks were left of it",
    Reason.CONTROL: "it had control or direction-changing characters",
    Reason.DUPLICATE: "it repeats the text around the cursor",
    Reason.REPETITION: "it repeats itself",
    Reason.SYNTAX: "it would break the syntax of the file",
    Reason.NO_OP: "it would change nothing",
    Reason.POPUP: "it does not extend what is selected in the completion popup",
    Reason.REJECTED: "it was dismissed at this place before",
    Reason.UNFINISHED: "time was up before any part could stand on its own",
    Reason.CUT_OFF: "the token limit came before any part could stand on its own",
    Reason.UNSURE: "the chance that it is accepted is below the setting minAcceptance: ask explicitly",
}

# Reasons of a complete middle: the model or a rule ended it.
ENDED = frozenset(
    {Reason.END, Reason.SUFFIX, Reason.SCOPE, Reason.STATEMENT, Reason.REPEATED, Reason.LINE, Reason.BLOCK},
)
