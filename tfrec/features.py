"""The `features:` section of the configuration: what is known of items, users and events, and how it becomes codes."""

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tfrec.schema import NAME_PATTERN, Feature, Kind
from tfrec.strict import Section
from tfrec.transforms import QUANTIZERS, Bins, Cross, EventCounter, Hashed, Quantizer

QUANTIZER_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "quantile": ("groups", "dims_per_group", "quantiles"),
    "product": ("groups", "dims_per_group", "codes"),
    "residual": ("levels", "codes"),
}
"""The options of each quantiser."""


ENCODERS: Mapping[str, tuple[str, ...]] = {
    "text": ("tf_models", "keras_hub", "saved_model"),
    "image": ("keras", "tf_models", "saved_model"),
}
"""The kinds of encoders that there are for each kind of content."""


COUNTER_BOUNDARIES = tuple(float(2**power) for power in range(11))
"""Of counters by default: none, 1, 2 to 3, 4 to 7, ..., 1,024 and more earlier events."""


class EncoderConfig(Section):
    """A pretrained encoder of texts or images, run by the job; models see the quantised vectors."""

    kind: Literal["tf_models", "keras_hub", "saved_model", "keras"]
    """tf_models: a folder of tf-models-official, for texts `bert_config.json` (or `params.yaml`), `vocab.txt` and a
    checkpoint, for images `params.yaml` and a checkpoint. keras_hub: a preset's folder (texts). saved_model: a
    SavedModel's folder. keras: a .keras file (images)."""
    path: str = Field(min_length=1)
    """The checkpoint, on a disk that all workers see."""
    batch_size: int = Field(32, ge=1)
    """Values encoded at once."""
    max_tokens: int = Field(64, ge=3)
    """Tokens of a text at most (tf_models, keras_hub)."""
    lower_case: bool = True
    """The vocabulary is of lower-cased words without accents (tf_models, texts)."""
    pooling: Literal["mean", "first"] = "mean"
    """A text's vector: the mean of its tokens' or that of the first (tf_models, keras_hub)."""
    signature: str = "serving_default"
    """The signature that is called, of one input (saved_model)."""
    output: str | None = None
    """The output that holds the vectors, where the signature has several (saved_model)."""
    folder: str = ""
    """What paths of images are relative to."""
    image_size: tuple[int, int] | None = None
    """Height and width that images are scaled to, where the encoder has none of its own; 224 x 224 by default."""
    pixel_range: tuple[float, float] = (0.0, 255.0)
    """What a channel's 0 and 255 become (keras, saved_model); tf_models normalise by ImageNet's mean and deviation."""

    def options_of(self, content: str) -> Iterator[tuple[str, bool]]:
        """Options and whether an encoder of this kind, for such content, uses them."""
        tokens = content == "text" and self.kind in ("tf_models", "keras_hub")
        yield from (("max_tokens", tokens), ("pooling", tokens))
        yield "lower_case", content == "text" and self.kind == "tf_models"
        yield from ((option, self.kind == "saved_model") for option in ("signature", "output"))
        yield from ((option, content == "image") for option in ("folder", "image_size"))
        yield "pixel_range", content == "image" and self.kind != "tf_models"


class FeatureConfig(Section):
    """One feature of items, users or events."""

    name: str = Field(pattern=NAME_PATTERN)
    """Its name in the schema: letters, digits and _, a letter first, at most 64; files are called by it."""
    kind: Kind
    """categorical, numerical, multimodal (a ready-made vector), text, image (bytes, or paths of files), or counter (of
    the user's earlier events, of events)."""
    column: str | None = None
    """The raw column; by default the one called `name`."""
    multivalued: bool = False
    """A cell holds several values (categorical)."""
    separator: str | None = Field(None, min_length=1)
    """Separates the values in a text cell (multi-valued); None where the column holds lists."""
    max_values: int = Field(8, ge=1)
    """Values kept at most (multi-valued)."""
    weight_separator: str | None = Field(None, min_length=1)
    """Each value is followed by this and its weight, a number above 0, as in `red:0.7`; embeddings are averaged by
    weight. A value without a weight has 1 (multi-valued)."""
    min_count: int = Field(1, ge=1)
    """Values seen less often become unknown (categorical)."""
    max_size: int = Field(1_000_000, ge=1)
    """Values kept at most, the most frequent (categorical); a longer `vocabulary` is an error."""
    vocabulary: str | tuple[str, ...] | None = None
    """The values that have codes, in this order: a list, or a UTF-8 text file of one value a line; all others are
    unknown (categorical)."""
    hash_buckets: int | None = Field(None, ge=2, le=10_000_000)
    """Instead of a vocabulary, so many buckets that values are hashed to (categorical)."""
    cross: tuple[str, ...] | None = Field(None, min_length=2, max_length=2)
    """Two other features of the same side, numerical or categorical with one value: each pair of their codes is a
    value, hashed to `hash_buckets`; no column of its own (categorical)."""
    bins: int = Field(32, ge=2)
    """Bins at most; a missing value has one of its own besides (numerical)."""
    spacing: Literal["quantile", "uniform", "log"] = "quantile"
    """Where bins are cut: as many values in each, steps of equal width, or steps of equal ratio (numerical). With log
    all that is not positive shares the first bin."""
    boundaries: tuple[float, ...] | None = Field(None, min_length=1)
    """The boundaries themselves, increasing; a value equal to one belongs above it (numerical, counter). Of a counter
    1, 2, 4, ..., 1024 by default."""
    of: str | None = None
    """What a counter counts: `user`, all earlier events of the user, or a feature of items with one code, such as
    `item_id` or a category: the user's earlier events of items with the same code (counter)."""
    window_seconds: int | None = Field(None, ge=1, lt=2**31)
    """Only earlier events at most so long before the event (counter)."""
    event_types: tuple[str, ...] | None = Field(None, min_length=1)
    """Only earlier events of these types (counter)."""
    standardize: bool = False
    """Models also read the value itself, less the mean and divided by the standard deviation, cut to -10..10; a missing
    one as 0 (numerical, of items)."""
    dim: int = Field(64, ge=2)
    """Width of the vector: of the TF-IDF + SVD text vector, of what the encoder gives, or of the ready-made one
    (0-padded widths are errors)."""
    vectors: str | None = None
    """A .npy file of shape `(rows, dim)`; the column then holds the row, from 0, of each item's vector (multimodal)."""
    encoder: EncoderConfig | None = None
    """What makes vectors of texts, by default TF-IDF + SVD fitted in the job, or of images, which need one."""
    quantizer: Literal["quantile", "product", "residual"] = "quantile"
    """Vectors to codes (multimodal, text, image): quantiles of each dimension of a group (HeterRec's), the nearest of k
    means in each group, or k means of what the level before left over (semantic ids, whose embeddings are summed)."""
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
    """Store the vectors beside the codes (multimodal, text, image)."""

    @property
    def is_vector(self) -> bool:
        """A vector that is quantised."""
        return self.kind in ("multimodal", "text", "image")

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
        self._check_encoder()
        if self.boundaries is not None and any(b <= a for a, b in pairwise(self.boundaries)):
            raise ValueError("`boundaries` must increase")
        if self.cross is not None and (self.hash_buckets is None or self.column is not None):
            raise ValueError("a `cross` must have `hash_buckets` and no `column`")
        if self.kind == "counter" and (self.of is None or self.column is not None):
            raise ValueError("a counter must say what it is `of`, and has no `column`")
        return self

    def _check_encoder(self) -> None:
        if self.encoder is None:
            if self.kind == "image":
                raise ValueError("an image needs an `encoder`")
            return
        if self.encoder.kind not in ENCODERS[self.kind]:
            raise ValueError(f"`encoder.kind` of {self.kind}s must be one of {', '.join(ENCODERS[self.kind])}")
        for option, fits in self.encoder.options_of(self.kind):
            if not fits and getattr(self.encoder, option) != EncoderConfig.model_fields[option].default:
                raise ValueError(f"`encoder.{option}` is no option of {self.encoder.kind} encoders of {self.kind}s")

    def _uses(self) -> Iterator[tuple[tuple[str, ...], bool, str]]:
        """Options, whether this feature uses them, and which features do."""
        categorical, numerical = self.kind == "categorical", self.kind == "numerical"
        hashed = self.hash_buckets is not None
        yield ("hash_buckets", "cross"), categorical, "of kind categorical"
        yield ("multivalued",), categorical and self.cross is None, "of kind categorical without `cross`"
        yield ("max_size", "vocabulary"), categorical and not hashed, "of kind categorical without `hash_buckets`"
        what = "of kind categorical without `hash_buckets` or `vocabulary`"
        yield ("min_count",), categorical and not hashed and self.vocabulary is None, what
        yield ("separator", "max_values", "weight_separator"), self.multivalued, "with `multivalued: true`"
        yield ("boundaries",), numerical or self.kind == "counter", "of kind numerical or counter"
        yield ("standardize",), numerical, "of kind numerical"
        yield ("of", "window_seconds", "event_types"), self.kind == "counter", "of kind counter"
        yield ("bins", "spacing"), numerical and self.boundaries is None, "of kind numerical without `boundaries`"
        yield ("vectors",), self.kind == "multimodal", "of kind multimodal"
        yield ("encoder",), self.kind in ENCODERS, "of kind text or image"
        yield ("dim", "quantizer", "keep_vectors"), self.is_vector, "of kind multimodal, text or image"
        for option in dict.fromkeys(option for options in QUANTIZER_OPTIONS.values() for option in options):
            users = [name for name, options in QUANTIZER_OPTIONS.items() if option in options]
            what = f"of kind multimodal, text or image with `quantizer: {' | '.join(users)}`"
            yield (option,), self.is_vector and self.quantizer in users, what

    def _said(self) -> str:
        return f"{self.kind}, {self.quantizer}" if self.is_vector else self.kind


def different_options(config: FeatureConfig, feature: Feature) -> dict[str, tuple[Any, Any]]:
    """The options of a dataset's feature that the schema remembers and the configuration gives otherwise: (now, then).

    What a fit may make smaller (bins, vocabularies) is not compared.
    """
    transform = feature.transform
    then: dict[str, Any] = {
        "kind": feature.kind,
        "column": feature.column,
        "multivalued": feature.multivalued,
        "separator": feature.separator,
        "weight_separator": feature.weight_separator,
        "keep_vectors": feature.keep_vectors,
        "standardize": feature.standard is not None,
    }
    if feature.multivalued:
        then["max_values"] = feature.num_codes
    if feature.kind == "categorical":
        then["hash_buckets"] = transform.hash_buckets if isinstance(transform, Hashed | Cross) else None
        then["cross"] = transform.cross if isinstance(transform, Cross) else None
    if isinstance(transform, Bins):
        then["boundaries"] = transform.boundaries if transform.spacing == "given" else None
        then |= {} if transform.spacing == "given" or config.boundaries else {"spacing": transform.spacing}
    if isinstance(transform, EventCounter):
        then |= {option: getattr(transform, option) for option in ("of", "window_seconds", "event_types")}
        then["boundaries"] = transform.boundaries
    if isinstance(transform, Quantizer):
        then["quantizer"] = next(name for name, kind in QUANTIZERS.items() if isinstance(transform, kind))
        then["dim"] = transform.input_dim
        shared = set(QUANTIZER_OPTIONS[config.quantizer]) & set(QUANTIZER_OPTIONS[then["quantizer"]])
        then |= {option: getattr(transform, option) for option in sorted(shared)}
    now = {**{option: getattr(config, option) for option in then}, "column": config.column or config.name}
    if config.kind == "counter" and "boundaries" in now:
        now["boundaries"] = config.boundaries or COUNTER_BOUNDARIES
    return {option: (now[option], value) for option, value in then.items() if now[option] != value}


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
    """Features of events, from the events file (categorical, numerical), and counters of earlier events."""
    display: tuple[str, ...] = ()
    """Columns of the items file stored as text for people; the first names an item."""
    request_time: bool = False
    """Each position sees the time of the event that it predicts, instead of its own event's."""
    fit_sample: int = Field(200_000, ge=1000)
    """Rows that bins, text and quantisers are fitted on at most (a bottom-k sample by hash)."""
