"""One strict YAML file an experiment: sections, defaults, checks, and where a misspelt key was probably meant to go.

Every section is a small frozen model whose attribute docstrings say what a key means. Unknown keys are errors that
suggest the nearest known one; `${VAR}` is replaced from the environment; `a.b=c` overrides come from `--set`.
"""

import codecs
import copy
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from tfrec.errors import UsageError
from tfrec.features import COUNTER_BOUNDARIES as COUNTER_BOUNDARIES
from tfrec.features import EncoderConfig as EncoderConfig
from tfrec.features import FeatureConfig as FeatureConfig
from tfrec.features import Features
from tfrec.features import ItemIds as ItemIds
from tfrec.features import different_options as different_options
from tfrec.schema import NAME_PATTERN, Label, Split
from tfrec.space import Sweep
from tfrec.strict import Section as Section
from tfrec.strict import read_yaml as read_yaml
from tfrec.strict import suggest as suggest

CONFIG = "config.yaml"
_MAX_BYTES = 1 << 20
_Checked = TypeVar("_Checked", bound=BaseModel)
TIME_UNITS = ("seconds", "milliseconds", "microseconds", "nanoseconds", "iso")


class Source(Section):
    """Files of one kind of raw log, and which of their columns mean what."""

    files: tuple[str, ...] = Field(min_length=1)
    """Paths or globs; a local path, anything that Beam's file systems read, or bigquery://PROJECT.DATASET.TABLE."""
    format: Literal["auto", "csv", "parquet", "jsonl"] = "auto"
    """`auto` goes by the suffix (.csv, .tsv, .parquet, .jsonl, .json; .gz, .bz2, .zst behind it)."""
    delimiter: str | None = None
    """Separates the columns of a CSV, one character; by default a tab in .tsv files, else a comma."""
    encoding: str = "utf-8"
    """Encoding of a CSV, by a name that Python knows."""
    header: tuple[str, ...] | None = None
    """Column names of a CSV that has no header line."""
    columns: dict[str, str] = Field({})
    """Role -> column in the files. Roles of events: user_id, item_id, time, order, event_type, session. Of items:
    item_id. Of users: user_id. Of impressions: user_id, item_id, time, position, request, weight (a number from 0 on
    by which an impression counts in the loss). A role left out means the column of the same name where the files have
    one."""
    time_unit: str = "seconds"
    """seconds, milliseconds, microseconds, nanoseconds, iso, or a strptime format such as %d/%m/%Y %H:%M."""

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str | None) -> str | None:
        if delimiter is not None and (len(delimiter.encode()) != 1 or delimiter in '"\r\n\0'):
            raise ValueError("must be one ASCII character, and neither a quote nor a line break")
        return delimiter

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            codecs.lookup(encoding)
            "a".encode(encoding)
        except (LookupError, ValueError, UnicodeError):
            raise ValueError("must be the name of a text encoding, such as utf-8, cp1252 or utf-16") from None
        return encoding

    @field_validator("time_unit")
    @classmethod
    def _known_time_unit(cls, unit: str) -> str:
        if unit not in TIME_UNITS and "%" not in unit:
            raise ValueError(f"must be a unit of time or a strptime format with %; {suggest(unit, TIME_UNITS)}")
        return unit


class Filters(Section):
    """What is dropped before the split, and counted."""

    min_user_events: int = Field(1, ge=1)
    """Users with fewer events are dropped."""
    min_item_events: int = Field(1, ge=1)
    """Events of items with fewer events are dropped."""
    k_core: int | None = Field(None, ge=2)
    """Repeat both filters with this number until nothing more falls."""
    exclude: dict[str, str] = Field({})
    """Column -> regular expression: rows whose column matches are filtered (`InvoiceNo: ^C`)."""
    require: dict[str, str] = Field({})
    """Column -> comparison that a row must pass (`Quantity: "> 0"`)."""


class Forget(Section):
    """Whose rows are left out, and counted: text files with one raw id a line."""

    users: str | None = None
    """Users to forget."""
    items: str | None = None
    """Items to forget: they leave the catalogue too."""


class Recipe(Section):
    """A public data set in the form in which its publisher gives it out."""

    name: str
    """movielens, amazon_s3rec, online_retail, shop."""
    path: str | None = None
    """Folder or file of the published data."""
    options: dict[str, Any] = Field({})
    """Options of the recipe (sizes of the made-up shop, ...)."""


class EventImpressions(Section):
    """Impressions made of events of a target type, for logs that hold none; all earlier events are their history."""

    negatives: int = Field(0, ge=0)
    """Items drawn for each event, none of them the user's at any time; 0 = none: then `data.labels` tell events apart
    (rating >= 4)."""
    popular_share: float = Field(0.5, ge=0, le=1)
    """Share of them that is drawn by training events; the others are drawn uniformly from the catalogue."""
    label: str = Field("event", pattern=NAME_PATTERN)
    """With `negatives` the name of the only label: 1 for events, 0 for what is drawn."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds the draws."""


class Data(Section):
    """Raw logs in, dataset out."""

    out: str = Field(min_length=1)
    """The dataset directory."""
    recipe: Recipe | None = None
    """Prepares `events`, `items`, `users`, `impressions` from a public data set; keys given here still win."""
    events: Source | None = None
    """The log of events."""
    items: Source | None = None
    """The catalogue, one row an item."""
    users: Source | None = None
    """User profiles, one row a user."""
    impressions: Source | None = None
    """What was shown, with what became of it."""
    impressions_from_events: EventImpressions | None = None
    """Where the log has no impressions: how events become some."""
    labels: tuple[Label, ...] = ()
    """0/1 labels of events and impressions."""
    target_events: Literal["all"] | tuple[str, ...] = "all"
    """Event types that are predicted."""
    repeats: Literal["keep", "first"] = "keep"
    """`first` drops a user's later events of the same item, before filters and split."""
    filters: Filters = Filters()
    """What is dropped before the split."""
    forget: Forget = Forget()
    """Users and items that leave no trace but their number."""
    split: Split = Split(kind="leave_one_out")
    """Training, validation, test."""
    max_rejected: float = Field(0.5, ge=0, le=1)
    """Share of rejected rows above which the job stops."""


class Histories(Section):
    """Each user's events in one record."""

    max_events: int = Field(10_000, ge=1)
    """Events kept at most a user, the latest."""
    session_gap_seconds: int = Field(1800, ge=1)
    """Inactivity that ends a session, where the log has no session id."""


class Ranking(Section):
    """What ranking models learn from: impressions. Other models read nothing of it."""

    labels: Literal["all"] | tuple[str, ...] = "all"
    """Labels of impressions that the model predicts; metrics without a label in their name are of the first."""
    group: Literal["request", "user"] = "request"
    """A training row is the impressions of one request (in logs without requests: of one moment), or of one user, whose
    history is encoded once for many of them: for models that are causal. Evaluation comes out the same."""
    max_candidates: int = Field(64, ge=1)
    """Impressions of a row at most; others make another row."""


class Training(Section):
    """How a model learns."""

    epochs: int = Field(20, ge=1)
    """Passes over the training rows at most."""
    batch_size: int = Field(128, ge=1)
    """Users (of ranking models: rows, see `ranking.group`) a batch on average: batches of short histories hold more, of
    long ones fewer."""
    length_buckets: bool = True
    """Histories of like length make a batch, which saves most of the padding; false = any `batch_size` users, padded to
    the model's history_length, as published code trains."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay; embeddings, biases and norms are left out."""
    beta_1: float = Field(0.9, gt=0, lt=1)
    """Adam's first decay rate."""
    beta_2: float = Field(0.98, gt=0, lt=1)
    """Adam's second decay rate."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps of linear warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up."""
    clip_norm: float | None = Field(None, gt=0)
    """Global gradient norm to clip at."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Momentum of an exponential moving average of the weights, used for validation and saved."""
    windows: Literal["last", "chunks", "random"] = "last"
    """Of a user with more events than the model's history_length: the last ones, all in consecutive chunks, or one
    window at a random place an epoch."""
    validate_every_epochs: int = Field(1, ge=1)
    """Epochs between validations."""
    validation_metric: str | None = None
    """Decides on early stopping and the best weights; None = ndcg@10, of ranking models auc."""
    validation_users: int | None = Field(None, ge=1)
    """Validation queries (of ranking models: rows) at most, a fixed sample; None = all."""
    patience: int | None = Field(None, ge=1)
    """Validations without improvement before stopping; None = never."""
    mixed_precision: bool = False
    """Compute in bfloat16, keep weights in float32."""
    jit_compile: bool | Literal["auto"] = "auto"
    """XLA; `auto` = on with JAX, off with TensorFlow on CPU."""
    seed: int = Field(0, ge=0)
    """Seeds initial weights, dropout, order and negatives."""
    tensorboard: bool = False
    """Also write TensorBoard logs."""
    initialize_from: str | None = None
    """A run whose weights are the start: of the same dataset, or of one that it grew from. New items start like those
    of like content. A ranking model may also start from a run of another model: it takes over the item embeddings and
    the session enhancement. The run is read when a training begins or goes on, never when a model is loaded."""
    inherited_learning_rate: float = Field(0.1, gt=0, le=1)
    """Share of the learning rate for what a ranking model took over from a run of another model, which is not
    decayed."""


class Evaluation(Section):
    """How a model is judged."""

    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 50, 100, 200), min_length=1)
    """Cut-offs of recall and ndcg (of retrieval models)."""
    filter_seen: bool = True
    """Items of the user's history are not recommended; needs `data.repeats: first` or data without repeats."""
    batch_size: int = Field(256, ge=1)
    """Queries a batch."""
    bootstrap_samples: int = Field(1000, ge=100)
    """Resamples of users behind the 95 % intervals."""


class Export(Section):
    """What is published."""

    k: int = Field(100, ge=1)
    """Items that `recommend` returns."""
    parity_users: int = Field(256, ge=1)
    """Users whose lists the parity gate compares."""
    min_recall: float = Field(0.9, ge=0, le=1)
    """Recall@k of the ScaNN index against exact search below which publishing is refused."""
    candidates: int = Field(200, ge=1)
    """Items that the retrieval model of two stages hands to the ranking model; at least `k`."""
    score_weights: dict[str, float] = Field({})
    """Of a ranking model: label -> weight of its probability in the sum that is `score`; empty = the mean of all."""


class Index(Section):
    """The nearest-neighbour index."""

    kind: Literal["exact", "scann"] = "exact"
    """Exact search, or ScaNN beside it."""
    target_recall: float = Field(0.95, gt=0, le=1)
    """Recall@k that ScaNN's parameters are chosen for."""


class Config(Section):
    """A whole experiment."""

    data: Data
    """Raw logs and the dataset made of them."""
    histories: Histories = Histories()
    """Each user's events."""
    features: Features = Features()
    """Features beside the ids."""
    ranking: Ranking = Ranking()
    """What a ranking model learns from."""
    model: dict[str, Any] = Field({"name": "heterrec"})
    """`name` (of tfrec.models.MODELS, or module:function) and the builder's keyword arguments."""
    objective: dict[str, Any] | None = None
    """`name` (of tfrec.objectives.OBJECTIVES) and its keyword arguments; None = the paper's."""
    training: Training = Training()
    """How the model learns."""
    evaluation: Evaluation = Evaluation()
    """How it is judged."""
    export: Export = Export()
    """What is published."""
    index: Index = Index()
    """The nearest-neighbour index."""
    sweep: Sweep | None = None
    """What `tfrec sweep` tries."""


class _SweepAlone(Section):
    """A file that says what is tried, of experiments in files of their own."""

    sweep: Sweep


def load(path: str | Path, overrides: Sequence[str] = (), changes: Mapping[str, Any] | None = None) -> Config:
    """Reads a YAML file, applies `a.b=c` overrides, replaces `${VAR}` and checks everything.

    Args:
        path: the file.
        overrides: `section.key=value`, as `--set` takes them.
        changes: section.key -> value, applied last.

    Raises:
        UsageError: one line that names the file and key, and the nearest known key where one is misspelt.
    """
    document = _read(Path(path))
    for override in overrides:
        _apply_override(document, override)
    for key, value in (changes or {}).items():
        _assign(document, key, value, str(path))
    return parse(document, where=str(path))


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Reads the `sweep:` section of a file, which may hold nothing else where every model names its own file.

    Args:
        path: the file.
        overrides: as for `load`; those of other sections say nothing here.

    Raises:
        UsageError: as `load`; no such section.
    """
    document = _read(Path(path))
    for override in overrides:
        if override.startswith("sweep."):
            _apply_override(document, override)
    if document.keys() == {"sweep"}:
        return _check(_SweepAlone, document, str(path)).sweep
    sweep = parse(document, where=str(path)).sweep
    if sweep is None:
        raise UsageError(f"{path}: has no section `sweep`; docs/configuration.md describes it.")
    return sweep


def parse(document: Mapping[str, Any], *, where: str = "config") -> Config:
    """Checks a configuration that is already a dictionary; `where` names it in messages."""
    return _check(Config, document, where)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path}: larger than {_MAX_BYTES} bytes, so hardly a configuration.")
        document = read_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UsageError(f"{path}: no such configuration file.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path}: must hold sections (data:, model:, ...).")
    return document


def _check(kind: type[_Checked], document: Mapping[str, Any], where: str) -> _Checked:
    expanded = _expand(document, where)
    try:
        return kind.model_validate(expanded)
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error)}") from None


def write(config: Config, directory: Path) -> None:
    """Saves the resolved configuration, every default spelt out, as `config.yaml`."""
    document = config.model_dump(mode="json")
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    (directory / CONFIG).write_text(text, encoding="utf-8")


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {override}: must look like section.key=value.")
    try:
        value = read_yaml(text)
    except yaml.YAMLError:
        raise UsageError(f"--set {override}: the value is not valid YAML.") from None
    _assign(document, key, value, f"--set {override}")


def _assign(document: dict[str, Any], key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        child = document.setdefault(parent, {})
        if not isinstance(child, dict):
            if child is not None:
                raise UsageError(f"{where}: `{parent}` is not a section.")
            child = document[parent] = {}
        document = child
    document[last] = copy.deepcopy(value)  # a later key may change a part of it


def _expand(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _expand(child, where) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_expand(child, where) for child in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: _variable(match[1], where), value)
    return value


def _variable(name: str, where: str) -> str:
    if name not in os.environ:
        raise UsageError(f"{where}: uses ${{{name}}}, which is not set; run `export {name}=...` first.")
    return os.environ[name]


def _explain(error: ValidationError) -> str:
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    location = [part for part in first["loc"] if not (isinstance(part, str) and "[" in part)]
    key = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        section = _section_at(location[:-1])
        hint = suggest(str(location[-1]), list(section.model_fields)) if section else ""
        return f"`{key}`: unknown key; {hint}".rstrip("; ")
    message = first["msg"].removeprefix("Value error, ")
    received = "" if first["type"] == "missing" else f" Received: {first['input']!r:.100}."
    message += "" if message.endswith((".", "?")) else "."
    return f"`{key}`: {message}{received}"


def _section_at(location: Sequence[int | str]) -> type[BaseModel] | None:
    section: type[BaseModel] = Config
    for part in location:
        if isinstance(part, int) or part not in section.model_fields:
            continue
        found = _model_in(section.model_fields[part].annotation)
        if found is None:
            return None
        section = found
    return section


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for argument in typing.get_args(annotation):
        if found := _model_in(argument):
            return found
    return None
