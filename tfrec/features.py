"""The `features:` section of the configuration: what is known of items, users and events, and how it becomes codes."""

from collections.abc import Iterator, Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from tfrec.schema import NAME_PATTERN, Kind
from tfrec.strict import Section

QUANTIZER_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "quantile": ("groups", "dims_per_group", "quantiles"),
    "product": ("groups", "dims_per_group", "codes"),
    "residual": ("levels", "codes"),
}
"""The options of each quantiser."""


class FeatureConfig(Section):
    """One feature of items, users or events."""

    name: str = Field(pattern=NAME_PATTERN)
    """Its name in the schema: letters, digits and _, a letter first, at most 64; files are called by it."""
    kind: Kind
    """categorical, numerical, multimodal (a ready-made vector) or text."""
    column: str | None = None
    """The raw column; by default the one called `name`."""
    multivalued: bool = False
    """A cell holds several values (categorical)."""
    separator: str | None = Field(None, min_length=1)
    """Separates the values in a text cell (multi-valued); None where the column holds lists."""
    max_values: int = Field(8, ge=1)
    """Values kept at most (multi-valued)."""
    min_count: int = Field(1, ge=1)
    """Values seen less often become unknown (categorical)."""
    max_size: int = Field(1_000_000, ge=1)
    """Values kept at most, the most frequent (categorical)."""
    bins: int = Field(32, ge=2)
    """Quantile bins (numerical)."""
    dim: int = Field(64, ge=2)
    """Width of the vector: of the TF-IDF + SVD text vector, or of the ready-made one (0-padded widths are errors)."""
    quantizer: Literal["quantile", "product", "residual"] = "quantile"
    """Vectors to codes (multimodal, text): quantiles of each dimension of a group (HeterRec's), the nearest of k means
    in each group, or k means of what the level before left over (semantic ids, whose embeddings are summed)."""
    groups: int = Field(8, ge=1)
    """Groups Z that a vector is cut into (quantile, product)."""
    dims_per_group: int = Field(2, ge=1)
    """Dimensions of a group after the rotation (quantile, product)."""
    quantiles: int = Field(8, ge=2)
    """Quantiles q of each dimension; q ** dims_per_group is at most 4,096 (quantile)."""
    codes: int = Field(256, ge=2, le=4096)
    """Codes, or means, of each group or level (product, residual)."""
    levels: int = Field(3, ge=1)
    """Levels, one code each (residual)."""
    keep_vectors: bool = False
    """Store the vectors beside the codes (multimodal, text)."""

    @property
    def is_vector(self) -> bool:
        """A vector that is quantised."""
        return self.kind in ("multimodal", "text")

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        for options, fits, what in self._uses():
            for option in options:  # a saved configuration spells out every default, which says nothing
                if not fits and getattr(self, option) != type(self).model_fields[option].default:
                    raise ValueError(f"`{option}` is an option of features {what} alone; {self.name} is {self._said()}")
        if self.is_vector and self.quantizer != "residual":
            if self.quantizer == "quantile" and self.quantiles**self.dims_per_group > 4096:
                raise ValueError("`quantiles` ** `dims_per_group` must be at most 4096")
            if self.groups * self.dims_per_group > self.dim:
                raise ValueError("`groups` * `dims_per_group` must be at most `dim`")
        return self

    def _uses(self) -> Iterator[tuple[tuple[str, ...], bool, str]]:
        """Options, whether this feature uses them, and which features do."""
        categorical, numerical = self.kind == "categorical", self.kind == "numerical"
        yield ("multivalued", "min_count", "max_size"), categorical, "of kind categorical"
        yield ("separator", "max_values"), self.multivalued, "with `multivalued: true`"
        yield ("bins",), numerical, "of kind numerical"
        yield ("dim", "quantizer", "keep_vectors"), self.is_vector, "of kind multimodal or text"
        for option in dict.fromkeys(option for options in QUANTIZER_OPTIONS.values() for option in options):
            users = [name for name, options in QUANTIZER_OPTIONS.items() if option in options]
            what = f"of kind multimodal or text with `quantizer: {' | '.join(users)}`"
            yield (option,), self.is_vector and self.quantizer in users, what

    def _said(self) -> str:
        return f"{self.kind}, {self.quantizer}" if self.is_vector else self.kind


class ItemIds(Section):
    """The vocabulary of item ids."""

    min_count: int = Field(0, ge=0)
    """Items with fewer training events become unknown and leave the catalogue; 0 keeps all, items never seen too."""
    max_size: int = Field(50_000_000, ge=1)
    """Items kept at most."""


class Features(Section):
    """What is known of items, users and events beside their ids."""

    item_id: ItemIds = ItemIds()
    """The vocabulary of item ids."""
    items: tuple[FeatureConfig, ...] = ()
    """Features of items, from the items file."""
    users: tuple[FeatureConfig, ...] = ()
    """Features of users, from the users file (categorical, numerical)."""
    events: tuple[FeatureConfig, ...] = ()
    """Features of events, from the events file (categorical, numerical)."""
    display: tuple[str, ...] = ()
    """Columns of the items file stored as text for people; the first names an item."""
    request_time: bool = False
    """Each position sees the time of the event that it predicts, instead of its own event's."""
    fit_sample: int = Field(200_000, ge=1000)
    """Rows that bins, text and quantisers are fitted on at most (a bottom-k sample by hash)."""
