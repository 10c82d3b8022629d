"""The recipe's `data:` section: where rows come from, how they are read, and what they must be."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from export.frozen import Frozen
from finetune import hub
from finetune.data.encodings import Encoding
from finetune.data.overlaps import NearCopies

Origin = Literal["local", "generated", "hf", "modelscope"]

Share = Annotated[float, Field(ge=0, le=1)]


class Contract(Frozen):
    """What the rows must be before anything is trained on them. Null leaves a limit out; the number is still reported.

    The defaults are ours: they let through what careful sets hold (the rows of this project's tests among them) and
    stop what a training silently suffers from.
    """

    broken_share: Share | None = Field(
        default=0.0,
        description="Share of the rows that may be broken (unreadable, or unfit for the template); above 0 such rows "
        "are dropped and counted.",
    )
    empty_share: Share | None = Field(default=0.05, description="Share of the rows that may lack a prompt or answer.")
    too_long_share: Share | None = Field(
        default=0.05, description="Share of the rows that may be dropped because they exceed data.max_tokens."
    )
    duplicate_share: Share | None = Field(
        default=0.3, description="Share of the rows that may repeat another to the letter (they are dropped)."
    )
    near_duplicate_share: Share | None = Field(
        default=None, description="Share of the kept rows that may be near copies of an earlier one (they stay)."
    )
    repeated_turn_share: Share | None = Field(
        default=0.05, description="Share of the rows in which a speaker may say the same twice."
    )
    trained_token_share: Share | None = Field(
        default=0.002, description="Share of the tokens that must at least carry loss: the assistant's words."
    )
    turn_end_share: Share | None = Field(
        default=1.0, description="Share of the assistant's turns that must end in a scored turn-end token."
    )
    overlap_exact_share: Share | None = Field(
        default=0.0, description="Share of the held-out rows that may ask what a training row asks."
    )
    overlap_near_share: Share | None = Field(
        default=0.02, description="Share of the held-out rows that may be near copies of a training row."
    )
    overlap_ngram_share: Share | None = Field(
        default=None,
        description="Share of the held-out rows that may share 13 words (Chinese: characters) in a row with a training "
        "row; words that stand in more than three in ten training rows are a form and not counted.",
    )
    outside_labels_share: Share | None = Field(
        default=0.0, description="Share of the answers that may be none of the template's labels, where it has some."
    )
    personal_share: Share | None = Field(
        default=None,
        description="Share of the rows in which an e-mail address, a phone number or an id number may be found.",
    )

    @property
    def drops_broken(self) -> bool:
        """Whether rows that cannot be read or do not fit the template are dropped and counted, not an error."""
        return self.broken_share is None or self.broken_share > 0


class DataSettings(Frozen):
    """The recipe's `data:` section."""

    path: str = Field(
        description="A .jsonl, .json, .csv or .parquet file, a folder of them, hf:owner/name, modelscope:owner/name, "
        "or generated:NAME for rows made from the grammar data_templates/NAME.grammar.yaml "
        "(generated:starter_general: talks of the kinds that the starter model knows)."
    )
    template: str | dict[str, str] = Field(
        default="auto",
        description="The data template: a name in data_templates/, the path of a YAML file, {prompt: '{field}', "
        "answer: '{field}'} for plain columns, or auto: the one whose form the first rows have.",
    )
    encoding: Encoding = Field(
        default="auto", description="Of text files; auto: UTF-8, or UTF-16 with its mark, or GB18030 where it is that."
    )
    split: str = Field(default="train", description="The split of a hub's dataset to read.")
    subset: str | None = Field(default=None, description="The configuration of a hub's dataset that has several.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub's dataset.")
    licence: str | None = Field(default=None, description="The rows' licence, for the report; null: not stated.")
    rows: int | None = Field(
        default=None, ge=3, description="At most this many rows, a seeded sample; for generated rows, how many to make."
    )
    group_by: str | None = Field(default=None, description="A field, or Jinja, in place of the template's group.")
    max_tokens: int = Field(default=512, ge=8, description="Rows of more tokens are dropped and counted, never cut.")
    max_train_tokens: int | None = Field(
        default=None, ge=1, description="Training rows are drawn, with the seed, until they hold this many tokens."
    )
    near_copies: NearCopies = Field(
        default="together",
        description="Rows of which the whole or the question is nearly the same (Jaccard similarity of character "
        "5-grams from 0.8; fewer than 1 in 100 such pairs are missed): together in one split, or only counted, or "
        "ignored, since the search takes minutes for hundreds of thousands of rows.",
    )
    valid_share: float = Field(default=0.05, gt=0, lt=1, description="Share of the rows to watch training with.")
    held_out_share: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows to measure every model on.")
    system_prompt: str | None = Field(
        default=None, description="Replaces every system message, the rows' own too; an empty text removes them."
    )
    mask_personal: bool = Field(
        default=False, description="Whether e-mail addresses, phone and id numbers and URLs are replaced by their kind."
    )
    contract: Contract = Field(default=Contract(), description="What the rows must be, or nothing is trained.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.valid_share + self.held_out_share >= 1:
            shares = f"valid_share {self.valid_share} and held_out_share {self.held_out_share}"
            raise ValueError(f"{shares} leave nothing to train on; their sum must be below 1")
        if isinstance(self.template, dict) and not {"prompt", "answer"} <= {*self.template} <= _COLUMNS:
            found = ", ".join(self.template) or "none"
            raise ValueError(f"template as columns takes the keys prompt and answer, and system; found {found}")
        unsearched = [name for name in _NEAR_LIMITS if getattr(self.contract, name) not in (None, _default(name))]
        if self.near_copies == "ignored" and unsearched:
            raise ValueError(f"contract.{unsearched[0]} cannot be judged: near_copies is ignored; expected counted")
        if self.origin in ("local", "generated"):
            # compared with the default, so that a resolved recipe, which spells out every key, loads again
            fields = type(self).model_fields
            given = [n for n in ("split", "subset", "revision") if getattr(self, n) != fields[n].default]
            if given:
                raise ValueError(f"{given[0]} is for hf: and modelscope: datasets; {self.path!r} is neither")
        elif hub.parse(self.path, "dataset", self.revision) is None:
            raise ValueError(f"{self.path!r} has not the form of a hub's id, such as {self.origin}:owner/name")
        if self.origin == "generated" and self.rows is None:
            raise ValueError(f"{self.path!r} needs rows: how many to make")
        return self

    @property
    def origin(self) -> Origin:
        """Where the rows come from, by the path's prefix."""
        prefix = self.path.partition(":")[0]
        named: dict[str, Origin] = {"generated": "generated", "hf": "hf", "modelscope": "modelscope"}
        return named.get(prefix, "local") if ":" in self.path else "local"


_NEAR_LIMITS = ("near_duplicate_share", "overlap_near_share")


def _default(name: str) -> object:
    return Contract.model_fields[name].default


_COLUMNS = frozenset({"prompt", "answer", "system"})
