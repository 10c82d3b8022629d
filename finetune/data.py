"""From rows to three splits of conversations: training, validation during training, and held out for measuring.

No row, group or prompt stands in two splits, and every row that is read is accounted for: kept, left out by
`data.rows`, or dropped for a reason that is counted. A row that does not fit its template is an error.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from export.artifacts import StageResult, sha256_of_file, sha256_of_folder
from export.chat import Conversation, Encoded, encode
from export.compare import Gate, too_few_rows
from export.errors import DataError
from export.frozen import Frozen
from finetune import hub, shipped, sources, template
from finetune.sources import Row
from finetune.splitting import SplitName, split_by_group, together

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DropReason = Literal["empty_prompt", "empty_answer", "duplicate", "too_long", "nothing_to_learn"]
_SPLIT_NAMES = ("train", "valid", "held-out")
Origin = Literal["local", "generated", "hf", "modelscope"]


class DataSettings(Frozen):
    """The recipe's `data:` section."""

    path: str = Field(
        description="A .jsonl, .json, .csv or .parquet file, a folder of them, hf:owner/name, modelscope:owner/name, "
        "or generated:NAME for rows made from the grammar data_templates/NAME.grammar.yaml."
    )
    template: str = Field(description="The data template: a name in data_templates/, or the path of a YAML file.")
    split: str = Field(default="train", description="The split of a hub's dataset to read.")
    subset: str | None = Field(default=None, description="The configuration of a hub's dataset that has several.")
    revision: str | None = Field(default=None, description="Branch, tag or commit of a hub's dataset.")
    rows: int | None = Field(
        default=None, ge=3, description="At most this many rows, a seeded sample; for generated rows, how many to make."
    )
    group_by: str | None = Field(default=None, description="A field, or Jinja, in place of the template's group.")
    max_tokens: int = Field(default=512, ge=8, description="Rows of more tokens are dropped and counted, never cut.")
    valid_share: float = Field(default=0.05, gt=0, lt=1, description="Share of the rows to watch training with.")
    held_out_share: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows to measure every model on.")
    system_prompt: str | None = Field(
        default=None, description="Replaces every system message, the rows' own too; an empty text removes them."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.valid_share + self.held_out_share >= 1:
            shares = f"valid_share {self.valid_share} and held_out_share {self.held_out_share}"
            raise ValueError(f"{shares} leave nothing to train on; their sum must be below 1")
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


class SplitCounts(Frozen):
    """What one split holds; `scored_tokens` are those that carry loss."""

    rows: int
    groups: int
    tokens: int
    scored_tokens: int


class Splits(StageResult):
    """Three files of conversations, and an account of every row: read = kept + sampled_out + all that were dropped."""

    read: int
    sampled_out: int
    kept: int
    dropped: dict[DropReason, int]
    max_tokens: int
    longest_row_tokens: int
    train: SplitCounts
    valid: SplitCounts
    held_out: SplitCounts
    fingerprint: str
    source: dict[str, str]

    def account(self) -> str:
        """What became of the rows, in a line: read, kept, dropped by reason, and where they went."""
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in self.dropped.items() if count) or "none"
        parts = ", ".join(f"{name} {getattr(self, name.replace('-', '_')).rows:,}" for name in _SPLIT_NAMES)
        left_out = f", {self.sampled_out:,} left out by data.rows" if self.sampled_out else ""
        return f"{self.read:,} rows read, {self.kept:,} kept (dropped: {dropped}{left_out}); {parts}"

    def warning(self, gate: Gate, rows: int) -> str | None:
        """Why no better verdict than `cannot tell` is to be expected where an answer is right or wrong; None when
        the held-out rows are enough. At most `rows` of them are measured on.
        """
        # the merged model is held to these limits in every run, whose verdict is its worst
        problem = too_few_rows(min(rows, self.held_out.rows), gate.from_6_bits)
        key = "check.rows" if rows < self.held_out.rows else "data.held_out_share, or give more rows"
        return problem and f"{problem} Raise {key}."

    def conversations(self, split: SplitName) -> tuple[Conversation, ...]:
        """The conversations of one split, in the order they were read."""
        return tuple(read_conversations(self.folder / f"{split}.jsonl"))


class _Kept(NamedTuple):
    """A conversation that made it, with its length and the number of tokens that carry loss."""

    conversation: Conversation
    tokens: int
    scored_tokens: int


def prepare(
    settings: DataSettings,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    seed: int,
    thinking: bool,
    offline: bool,
    out: Path,
) -> Splits:
    """Reads, maps, filters and splits the rows, and writes the three splits into `out`.

    Raises DataError when rows cannot be read or mapped, or when too few are left to split.
    """
    kept, dropped, read, sampled_out = _read_and_filter(
        settings, tokenizer, seed=seed, thinking=thinking, offline=offline
    )
    assigned = split_by_group(
        [item.conversation for item in kept],
        valid_share=settings.valid_share,
        held_out_share=settings.held_out_share,
        seed=seed,
    )
    if assigned is None:
        raise DataError(
            f"the rows cannot be split in three: {_accounts(read, kept, dropped)}, in fewer than 3 groups. Give more "
            "rows, or rows of more groups (see data.group_by): a group is never divided."
        )
    split = {name: [kept[index] for index in indexes] for name, indexes in assigned.items()}
    for name, items in split.items():
        _write(out / f"{name}.jsonl", (item.conversation for item in items))
    return Splits(
        folder=out,
        read=read,
        sampled_out=sampled_out,
        kept=len(kept),
        dropped=dict(dropped),
        max_tokens=settings.max_tokens,
        longest_row_tokens=max(item.tokens for item in kept),
        fingerprint=_fingerprint(out),
        source={"path": settings.path, "template": settings.template} | identity(settings, offline=offline),
        **{name: _counts(items) for name, items in split.items()},
    )


def usable_conversations(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerBase", *, seed: int, thinking: bool, offline: bool
) -> tuple[tuple[Conversation, ...], str]:
    """All rows that can be measured on, not split, and an account of every row. Raises DataError as `prepare` does."""
    kept, dropped, read, sampled_out = _read_and_filter(
        settings, tokenizer, seed=seed, thinking=thinking, offline=offline
    )
    left_out = f", {sampled_out:,} left out by data.rows" if sampled_out else ""
    return tuple(item.conversation for item in kept), _accounts(read, kept, dropped) + left_out


class _Read(NamedTuple):
    """What became of the rows that were read."""

    kept: list[_Kept]
    dropped: Counter[DropReason]
    read: int
    sampled_out: int


def _read_and_filter(
    settings: DataSettings, tokenizer: "PreTrainedTokenizerBase", *, seed: int, thinking: bool, offline: bool
) -> _Read:
    path = template.find(settings.template)
    mapper = template.RowMapper(template.load(path), system_prompt=settings.system_prompt, group_by=settings.group_by)
    rows, read = _sample(read_rows(settings, seed=seed, offline=offline), settings.rows, seed)
    kept, dropped = _filter(rows, mapper, tokenizer, max_tokens=settings.max_tokens, thinking=thinking)
    if not kept:
        raise DataError(f"no rows are left: {_accounts(read, kept, dropped)}. {_remedy(dropped, settings)}")
    return _Read(kept, dropped, read, read - len(rows))


def _accounts(read: int, kept: Sequence[_Kept], dropped: Counter[DropReason]) -> str:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in dropped.items()) or "none"
    return f"{read:,} rows read, {len(kept):,} kept, dropped: {reasons}"


def identity(settings: DataSettings, *, offline: bool) -> dict[str, str]:
    """What the rows are made of, by content: two runs with the same identity and settings read the same rows.

    A hub's dataset is known by its commit (Hugging Face) or its files' hash (ModelScope), and is fetched to learn it.
    """
    known = {"template_sha256": template.sha256(template.find(settings.template))}
    if settings.origin == "generated":
        return known | {"grammar_sha256": sha256_of_file(_grammar(settings))}
    if settings.origin == "local":
        return known | {"data_sha256": _sha256_of_files(Path(settings.path).expanduser())}
    snapshot = hub.download_dataset(settings.path, revision=settings.revision, offline=offline)
    return known | {"data_revision": hub.commit_of(snapshot) or f"sha256:{sha256_of_folder(snapshot)}"}


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The conversations of a split's file, one by one."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield Conversation.model_validate_json(line)


def read_rows(settings: DataSettings, *, seed: int, offline: bool) -> Iterator[Row]:
    """The rows, one by one, from wherever they come. Raises DataError for the first that cannot be read."""
    if settings.origin == "generated":
        from finetune.grammar import expand

        assert settings.rows is not None, "the settings ask for it"
        made = expand(_grammar(settings), settings.rows, seed)
        return (Row(dict(fields), f"{settings.path}, row {n}") for n, fields in enumerate(made, start=1))
    if settings.origin == "local":
        return sources.read_rows(Path(settings.path).expanduser())
    snapshot = hub.download_dataset(settings.path, revision=settings.revision, offline=offline)
    return sources.read_snapshot(snapshot, settings.path, split=settings.split, subset=settings.subset)


def _grammar(settings: DataSettings) -> Path:
    name = settings.path.partition(":")[2]
    path = shipped.folder("data_templates") / f"{name}.grammar.yaml"
    if not path.is_file():
        known = sorted(file.name.removesuffix(".grammar.yaml") for file in path.parent.glob("*.grammar.yaml"))
        raise DataError(f"there is no grammar for {settings.path!r}: {path} does not exist. Known: {', '.join(known)}.")
    return path


def _sample(rows: Iterable[Row], limit: int | None, seed: int) -> tuple[list[Row], int]:
    """At most `limit` rows, each equally likely, in their order; and how many there were (Vitter's algorithm R)."""
    source = random.Random(seed)
    chosen: list[tuple[int, Row]] = []
    count = 0
    for count, row in enumerate(rows, start=1):
        if limit is None or len(chosen) < limit:
            chosen.append((count, row))
        elif (place := source.randrange(count)) < limit:
            chosen[place] = (count, row)
    return [row for _, row in sorted(chosen, key=lambda pair: pair[0])], count


def _filter(
    rows: Iterable[Row],
    mapper: template.RowMapper,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_tokens: int,
    thinking: bool,
) -> tuple[list[_Kept], Counter[DropReason]]:
    kept: list[_Kept] = []
    dropped: Counter[DropReason] = Counter()
    seen: set[bytes] = set()
    for row in rows:
        conversation = mapper.conversation(row)
        reason = _empty(conversation) or _repeated(conversation, seen)
        if reason is None:
            encoded = _encoded(tokenizer, conversation, row, thinking)
            reason = _unusable(encoded, max_tokens)
        if reason is None:
            kept.append(_Kept(conversation, len(encoded.ids), sum(encoded.scored)))
        else:
            dropped[reason] += 1
    return kept, dropped


def _empty(conversation: Conversation) -> DropReason | None:
    if any(message.role == "assistant" and not message.content.strip() for message in conversation.messages):
        return "empty_answer"
    if any(message.role == "user" and not message.content.strip() for message in conversation.messages):
        return "empty_prompt"
    return None


def _repeated(conversation: Conversation, seen: set[bytes]) -> DropReason | None:
    """Marks the conversation as seen, and says so when the very same words were seen before, whatever its group."""
    words = json.dumps([message.model_dump() for message in conversation.messages], ensure_ascii=False)
    digest = hashlib.sha256(words.encode()).digest()
    if digest in seen:
        return "duplicate"
    seen.add(digest)
    return None


def _unusable(encoded: Encoded, max_tokens: int) -> DropReason | None:
    if len(encoded.ids) > max_tokens:
        return "too_long"
    return None if any(encoded.scored) else "nothing_to_learn"


def _encoded(tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, row: Row, thinking: bool) -> Encoded:
    try:
        return encode(tokenizer, conversation, thinking=thinking)
    except DataError as error:
        raise DataError(f"{row.origin}: {error}") from error


def _counts(items: Sequence[_Kept]) -> SplitCounts:
    return SplitCounts(
        rows=len(items),
        groups=len(together([item.conversation for item in items])),
        tokens=sum(item.tokens for item in items),
        scored_tokens=sum(item.scored_tokens for item in items),
    )


def _write(path: Path, conversations: Iterable[Conversation]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        # the only default is a group of no name, which would stand in every row
        file.writelines(conversation.model_dump_json(exclude_defaults=True) + "\n" for conversation in conversations)


def _fingerprint(folder: Path) -> str:
    """SHA-256 over the three files, by name: the identity of what is trained and measured on."""
    names = ("train.jsonl", "valid.jsonl", "held_out.jsonl")
    parts = "".join(f"{name}\0{sha256_of_file(folder / name)}\n" for name in names)
    return hashlib.sha256(parts.encode()).hexdigest()


def _sha256_of_files(path: Path) -> str:
    files = sources.files_of(path)
    if path.is_file():
        return sha256_of_file(path)
    parts = "".join(f"{file.relative_to(path).as_posix()}\0{sha256_of_file(file)}\n" for file in files)
    return hashlib.sha256(parts.encode()).hexdigest()


def _remedy(dropped: Counter[DropReason], settings: DataSettings) -> str:
    reason = dropped.most_common(1)[0][0] if dropped else None
    if reason == "too_long":
        return f"Raise data.max_tokens, which is {settings.max_tokens}."
    if reason in ("empty_answer", "empty_prompt"):
        return f"Check that the template {settings.template!r} reads the right fields."
    return "Check the source."
