"""The canvas of a model card: what its slots see, how long it is, how it is filled."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator


class Canvas(BaseModel, extra="forbid", frozen=True, strict=True):
    """The canvas of the dllm route."""

    attention: Literal["full", "cached", "block"]
    mask: str
    context: str = ""  # of attention "block": the prompt, with {suffix} and {prefix}
    shift: bool = False
    start: str | None = None
    after_suffix: str | None = None
    end: str | None = None
    expand: str | None = None
    delete: str | None = None
    length: Literal["end", "expand", "search", "fixed"]
    block_tokens: int = Field(default=16, ge=1, le=256)
    sub_block_tokens: int = Field(default=0, ge=0, le=256)  # parts of a block, filled left to right; 0: none
    initial_tokens: int = Field(default=16, ge=1, le=256)
    max_tokens: int = Field(default=64, ge=1, le=1024)
    schedule: str = "threshold"
    edit_level: float | None = Field(default=None, ge=0, lt=1)  # least probability that replaces a token
    edit_steps: int = Field(default=16, ge=1, le=64)  # passes over a full block, for more such edits
    least_steps: int = Field(default=0, ge=0, le=256)  # denoising steps as in training; 0: no limit
    most_steps: int = Field(default=0, ge=0, le=256)
    cache: str = "none"  # KV cache, for attention "full"
    length_bias: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(), max_length=10)
    length_probe: str | None = None  # file of a map from hidden states to the length, instead of the search
    broadcast: bool = True  # an end or delete token also fills every masked slot to its right
    forbidden: tuple[str, ...] = ()
    adapter: str | None = None  # file of a low-rank adapter that acts on canvas rows only

    @model_validator(mode="after")
    def _attention_has_its_fields(self) -> Canvas:
        if self.attention == "cached" and self.shift != (self.adapter is not None):
            raise ValueError("a cached canvas has `shift` with an `adapter`, and not without")
        if self.adapter is not None and self.attention != "cached":
            raise ValueError("`adapter` is for the attention 'cached'")
        if self.cache != "none" and self.attention != "full":
            raise ValueError("`cache` is for the attention 'full': others have an exact one anyway")
        return self

    @model_validator(mode="after")
    def _length_is_searched(self) -> Canvas:
        if (self.length_probe or self.length_bias) and self.length != "search":
            raise ValueError("`length_bias` and `length_probe` are for the length 'search'")
        if self.length_probe and self.length_bias:
            raise ValueError("give `length_bias` or `length_probe`: with a probe nothing is searched")
        return self

    @model_validator(mode="after")
    def _blocks_have_their_fields(self) -> Canvas:
        in_blocks = self.attention == "block"
        if in_blocks != bool(self.context):
            raise ValueError("`context` is for the attention 'block', and needed there")
        if self.sub_block_tokens and (not in_blocks or self.block_tokens % self.sub_block_tokens):
            raise ValueError("`sub_block_tokens` is for the attention 'block', and divides `block_tokens`")
        if in_blocks and self.length != "end":
            raise ValueError("attention 'block' needs length 'end'")
        if in_blocks and any(self.context.count(side) != 1 for side in ("{prefix}", "{suffix}")):
            raise ValueError("`context` needs {prefix} and {suffix}, each once")
        return self

    @model_validator(mode="after")
    def _edits_have_rows_of_their_own(self) -> Canvas:
        whole_blocks = self.attention == "block" and not self.sub_block_tokens
        if self.edit_level is not None and (self.shift or not whole_blocks):
            raise ValueError(
                "`edit_level` is for the attention 'block' without `shift` and `sub_block_tokens`"
            )
        return self

    @model_validator(mode="after")
    def _length_and_steps_are_whole(self) -> Canvas:
        if 0 < self.most_steps < self.least_steps:
            raise ValueError("`least_steps` must not be above `most_steps`")
        if self.length == "end" and self.end is None:
            raise ValueError("length 'end' needs the token `end`")
        if self.length == "expand" and (self.expand is None or self.delete is None):
            raise ValueError("length 'expand' needs the tokens `expand` and `delete`")
        return self
