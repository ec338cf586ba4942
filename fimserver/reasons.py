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
    Reason.END: "the model ended the middle",
    Reason.SUFFIX: "the middle reached the text after the cursor",
    Reason.SCOPE: "the cursor's block or brackets were closed",
    Reason.STATEMENT: "one line was wanted, and its statement is complete",
    Reason.REPEATED: "a line was repeated",
    Reason.LINE: "the stop rule: one line",
    Reason.BLOCK: "the stop rule: the block ended",
    Reason.LENGTH: "the token limit",
    Reason.DEADLINE: "the deadline passed; the part that was usable by then is returned",
    Reason.EMPTY: "the model found that nothing belongs here",
    Reason.CANCELLED: "the editor cancelled the request",
    Reason.SUPERSEDED: "a newer request for this document took its place",
    Reason.STALE: "the document changed before the answer came",
    Reason.OFF: "completions are switched off, by a setting or by the command fimserver.toggle",
    Reason.NOT_OPEN: "the editor never opened this document with the server",
    Reason.DIRTY: "an edit could not be applied, so the text is not known: close and reopen the file",
    Reason.TOO_LARGE: "the file is too large, or a line is too long",
    Reason.EXCLUDED: "the file may contain secrets, or .gitignore or .fimignore excludes it",
    Reason.GENERATED: "the file is generated, minified or not text",
    Reason.MID_WORD: "the cursor is inside a word: ask explicitly to complete here",
    Reason.ON_DEMAND: "the setting trigger is onDemand: ask explicitly to complete here",
    Reason.SNOOZED: "suggestions are snoozed: ask explicitly to complete here",
    Reason.BATTERY: (
        "the machine runs on battery or saves power, and the setting battery is off: ask explicitly"
    ),
    Reason.ENOUGH: ("the limit of the setting shownPerMinute is reached for this minute: ask explicitly"),
    Reason.BAD_INPUT: "the request cannot be used",
    Reason.LOADING: "the model is loading",
    Reason.NO_MODEL: "the model cannot be loaded: run fimserver doctor",
    Reason.OVERLOADED: "the host, or its model's server, has too many requests: try again in a moment",
    Reason.PAUSED: "the host is paused and has unloaded its models: ask explicitly to resume",
    Reason.NO_HOST: "the model host cannot be reached; it is being restarted",
    Reason.HOST_FAILED: "the model host crashed three times in three minutes: ask explicitly to try again",
    Reason.REFUSED: "the host refused the request: check --connect and its token",
    Reason.OUT_OF_MEMORY: "the device ran out of memory: use a smaller model",
    Reason.NON_FINITE: "the model produced NaN or infinity",
    Reason.AWAY: "the model's server cannot be reached, or closed the connection: is it running?",
    Reason.BAD_KEY: "the model's server refuses the key: check FIMSERVER_REMOTE_KEY or the card",
    Reason.WRONG_MODEL: "the server does not have the model named in the card",
    Reason.NO_FIM: "the server, or its model, cannot fill middles: run fimserver doctor",
    Reason.TOO_LONG: "the prompt is too long for the server: lower prompt_tokens in the card",
    Reason.GARBLED: "the model's server failed, or sent an invalid answer",
    Reason.FAILED: "an error inside fimserver: its log names the place",
    Reason.BLANK: "only white space was left of it",
    Reason.CONTROL: "it contained control or direction-changing characters",
    Reason.DUPLICATE: "it repeats the text around the cursor",
    Reason.REPETITION: "it repeats itself",
    Reason.SYNTAX: "it would break the syntax of the file",
    Reason.NO_OP: "it would change nothing",
    Reason.POPUP: "it does not extend the selected item of the completion menu",
    Reason.REJECTED: "it was dismissed at this place before",
    Reason.UNFINISHED: "the deadline passed before any part was usable",
    Reason.CUT_OFF: "the token limit was reached before any part was usable",
    Reason.UNSURE: "its chance of being accepted is below the setting minAcceptance: ask explicitly",
}

# Reasons of a complete middle: the model or a rule ended it.
ENDED = frozenset(
    {Reason.END, Reason.SUFFIX, Reason.SCOPE, Reason.STATEMENT, Reason.REPEATED, Reason.LINE, Reason.BLOCK},
)
