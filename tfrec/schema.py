"""The contract of a dataset's features: what Beam wrote, what models embed, what the serving graph must code again."""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tfrec.errors import UserError
from tfrec.transforms import FIRST_VALUE, Cross, Encoder, EventCounter, Quantizer, Standard, Transform, Vocabulary

SCHEMA = "schema.json"
FORMAT_VERSION = 2
ITEM_ID = "item_id"
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
"""Names of features and labels: files and keys of records are called by them."""

MISSING_LABEL = -1
"""What is stored of a label where the raw column is empty; else 0 or 1."""

WEIGHTS = "_weights"
"""Behind a feature's name: the weights of its values, in records of users, in batches and as an input."""

Side = Literal["user", "item", "event"]
Kind = Literal["categorical", "numerical", "multimodal", "text", "image", "counter"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Feature(_Part):
    """One feature: one token of an item, one embedding of an event or a user.

    `multivalued` features have `num_codes` columns that share one vocabulary (padded with 0, averaged); quantised
    vectors have one column and one embedding table a group (concatenated) or a level (summed); all others have one.
    """

    name: str = Field(pattern=NAME_PATTERN)
    side: Side
    kind: Kind
    column: str
    """The raw column that it is made of; of a cross or a counter its own name."""
    transform: Transform
    multivalued: bool = False
    separator: str | None = None
    """What separates the values inside one text cell of a multi-valued feature; None where the column holds lists."""
    weight_separator: str | None = None
    """For values with weights: what stands between a value and its weight; weights are stored beside the codes, those
    of items as vectors are."""
    num_codes: int = 1
    encoder: Encoder | None = None
    """For texts and images: what made the vector that `transform` quantises."""
    keep_vectors: bool = False
    """The vectors themselves are stored with the items, in float32, beside the codes."""
    standard: Standard | None = None
    """For numbers of items: what made the standardised values that are stored beside the codes, as vectors are."""

    @property
    def table_sizes(self) -> tuple[int, ...]:
        """Rows of each embedding table: one table for plain and multi-valued features, one a code for vectors."""
        return self.transform.table_sizes

    @property
    def combiner(self) -> Literal["concatenate", "sum"]:
        """How the embeddings of several tables become one."""
        return self.transform.combiner if isinstance(self.transform, Quantizer) else "concatenate"

    @property
    def vector_dim(self) -> int | None:
        """Width of the vectors that are quantised; None for features without vectors."""
        return self.transform.input_dim if isinstance(self.transform, Quantizer) else None

    @property
    def stored_dim(self) -> int:
        """Width of what is stored of it with the items beside codes: vectors, weights, one number; 0 = nothing."""
        if self.weight_separator is not None:
            return self.num_codes
        return 1 if self.standard is not None else (self.vector_dim or 0) if self.keep_vectors else 0


class Label(_Part):
    """A 0/1 label of events or impressions: `column` compared with `value` by `operator`."""

    name: str = Field(pattern=NAME_PATTERN)
    column: str
    operator: Literal[">=", ">", "<=", "<", "==", "!="]
    value: float | str


class Impressions(_Part):
    """What is stored of each impression beside its item."""

    labels: tuple[str, ...]
    """Names of the labels that impressions have."""
    has_positions: bool = False
    """Each has its place on the list that was shown."""
    has_requests: bool = False
    """Each belongs to a request, whose impressions were shown together."""
    has_weights: bool = False
    """Each counts by a weight of its own in the loss."""


class Split(_Part):
    """How events were divided into training (0), validation (1) and test (2)."""

    kind: Literal["leave_one_out", "temporal", "last_fraction"]
    """leave_one_out: a user's last target event is test, the one before it validation; impressions belong to the split
    of the event that comes next. temporal: two times. last_fraction: each user's last shares."""
    validation: bool = Field(True, strict=True)
    """Whether events are held out for validation; if not, they stay in training."""
    fraction: float | None = Field(None, strict=True)
    """Share of a user's events that is test, and again validation (last_fraction)."""
    validation_from: int | None = Field(None, strict=True)
    """Unix seconds; events from here on are validation (temporal)."""
    test_from: int | None = Field(None, strict=True)
    """Unix seconds; events from here on are test (temporal)."""


class Schema(_Part):
    """Everything that a model, an export or a server needs to know of a dataset's features.

    The first item feature is always `item_id`; its vocabulary is the catalogue.
    """

    format_version: int = FORMAT_VERSION
    features: tuple[Feature, ...]
    event_types: tuple[str, ...] = ()
    """Event types by falling count; the code of the first is 2. Empty where the log has no types."""
    target_event_types: tuple[str, ...] | None = None
    """Types that are predicted; None = all."""
    labels: tuple[Label, ...] = ()
    display: tuple[str, ...] = ()
    """Raw text fields stored with the items for people to read (title, ...)."""
    title: str | None = None
    """The display field that names an item."""
    has_time: bool = True
    has_sessions: bool = True
    session_gap_seconds: int | None = None
    """Inactivity that ended a session; None where the log has its own sessions, or none."""
    impressions: Impressions | None = None
    """None where the dataset has no impressions."""
    time_origin: int = 0
    """Unix seconds of midnight UTC before the first accepted event; stored times count from here."""
    max_events: int
    """Events stored at most a user (the latest)."""
    repeats: Literal["keep", "first"]
    split: Split
    counts: dict[str, int]
    """`users`, `items`, `events`, `train_events`, `impressions`."""

    def side(self, side: Side) -> tuple[Feature, ...]:
        """The features of one side, in schema order."""
        return tuple(feature for feature in self.features if feature.side == side)

    def inputs(self, side: Side) -> tuple[Feature, ...]:
        """Those of one side that are made of raw values, not of other features or of the history."""
        return tuple(feature for feature in self.side(side) if not isinstance(feature.transform, Cross | EventCounter))

    def weighted(self, side: Side) -> tuple[Feature, ...]:
        """Those of one side whose values have weights."""
        return tuple(feature for feature in self.side(side) if feature.weight_separator is not None)

    def counters(self) -> dict[str, EventCounter]:
        """The features of events that count earlier events of the user."""
        return {one.name: one.transform for one in self.side("event") if isinstance(one.transform, EventCounter)}

    def counted_types(self, counter: EventCounter) -> list[int] | None:
        """The codes of the event types that a counter counts; None = all."""
        names = counter.event_types
        return None if names is None else [FIRST_VALUE + self.event_types.index(name) for name in names]

    def filterable(self) -> tuple[Feature, ...]:
        """The features of items by whose values a request can filter: categorical ones with a vocabulary."""
        kept = (feature for feature in self.side("item") if feature.name != ITEM_ID and feature.kind == "categorical")
        return tuple(feature for feature in kept if isinstance(feature.transform, Vocabulary))

    def filter_inputs(self) -> list[str]:
        """Names of the filters that a request can carry: items to allow, items to deny, values to allow."""
        return ["allow_item_ids", "deny_item_ids", *(f"allow_{feature.name}" for feature in self.filterable())]

    def feature(self, name: str) -> Feature:
        """The feature of that name."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(name)

    @property
    def item_vocabulary(self) -> Vocabulary:
        """The vocabulary of item ids."""
        transform = self.feature(ITEM_ID).transform
        assert isinstance(transform, Vocabulary), "`item_id` is a vocabulary feature."
        return transform

    @property
    def num_items(self) -> int:
        """Rows of every item table: the catalogue + padding + unknown."""
        return self.item_vocabulary.size

    def times_of(self, count: int, request_time: int | None = None) -> list[int]:
        """Unix seconds of a history that came without times: a minute apart, the last event at the request.

        Args:
            count: events.
            request_time: Unix seconds of the request; None = as soon after `time_origin` as there is room.
        """
        end = self.time_origin + 60 * count if request_time is None else request_time
        return [end - 60 * (count - 1 - place) for place in range(count)]

    def item_columns(self) -> dict[str, slice]:
        """Where each item feature's codes stand in the columns of the item table `(num_items, columns)`."""
        columns, start = {}, 0
        for feature in self.side("item"):
            columns[feature.name] = slice(start, start + feature.num_codes)
            start += feature.num_codes
        return columns

    def write(self, directory: Path) -> None:
        """Writes `schema.json`."""
        document = self.model_dump(mode="json")
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (directory / SCHEMA).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Reads `schema.json`; one of another format version, or a damaged one, is a `UserError`."""
        path = Path(directory) / SCHEMA
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{directory}: no {SCHEMA} there; `tfrec preprocess` makes one.") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid JSON ({error}); run `tfrec preprocess` again.") from None
        version = document.get("format_version") if isinstance(document, dict) else None
        if version != FORMAT_VERSION:
            raise UserError(
                f"{path}: format version {version!r}, this tfrec reads {FORMAT_VERSION}; run `tfrec preprocess` again."
            )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(f"{path}: `{where}`: {first['msg']}; run `tfrec preprocess` again.") from None


__all__ = [
    "FORMAT_VERSION",
    "ITEM_ID",
    "MISSING_LABEL",
    "NAME_PATTERN",
    "WEIGHTS",
    "Feature",
    "Impressions",
    "Kind",
    "Label",
    "Schema",
    "Side",
    "Split",
]
