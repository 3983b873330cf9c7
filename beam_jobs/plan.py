"""What a job does with which columns: the configuration checked against the logs that were found."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from beam_jobs.filters import Comparison, check_patterns
from beam_jobs.forgetting import ForgetLists, read_forget_lists
from beam_jobs.pretrained import check_encoder
from beam_jobs.sources import ROLES, ROW, Log, LogKind, open_log
from beam_jobs.splits import check_split
from beam_jobs.validation import Field, FieldKind, open_vectors
from beam_jobs.vocabularies import given_values
from tfrec.config import Config, Data, FeatureConfig, Filters, suggest
from tfrec.errors import UsageError
from tfrec.schema import ITEM_ID, WEIGHTS, Impressions, Label

_ROLE_KINDS: dict[str, FieldKind] = {
    "user_id": "id",
    "item_id": "id",
    "time": "time",
    "order": "integer",
    "event_type": "text",
    "session": "text",
    "position": "integer",
    "request": "text",
    "weight": "weight",
}
_MAY_BE_EMPTY = {"event_type", "position", "request"}
_KINDS: dict[str, tuple[str, ...]] = {
    "items": ("categorical", "numerical", "multimodal", "text", "image"),
    "users": ("categorical", "numerical"),
    "events": ("categorical", "numerical", "counter"),
}
_KEYS_OF_ROLES = {"items": "id", "users": "id", "events": "type"}  # stored as item_id, user_id, event_type
REQUIRE_PREFIX, EXCLUDE_PREFIX, LABEL_PREFIX = "_require_", "_exclude_", "_label_"


@dataclass(frozen=True)
class LogPlan:
    """How one log is read: which columns are checked, what they are turned into, which rows are filtered."""

    log: Log
    fields: tuple[Field, ...]
    labels: tuple[Label, ...] = ()
    filters: Filters = field(default_factory=Filters)
    forget: ForgetLists = field(default_factory=ForgetLists)

    @property
    def kind(self) -> LogKind:
        """events, items, users or impressions."""
        return self.log.kind

    @property
    def columns(self) -> list[str]:
        """The raw columns that are read, sorted."""
        return sorted({one.column for one in self.fields})

    @property
    def encoded(self) -> tuple[Field, ...]:
        """The texts and images that a pretrained encoder turns into vectors."""
        return tuple(one for one in self.fields if one.feature is not None)

    @property
    def images(self) -> frozenset[str]:
        """The raw columns of images."""
        return frozenset(one.column for one in self.fields if one.kind == "image")

    @property
    def file_names(self) -> list[str]:
        """What outputs call the files."""
        return [file.name for file in self.log.files]

    def has(self, role: str) -> bool:
        """Whether the log has the role."""
        return role in self.log.roles


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first row is read."""

    config: Config
    events: LogPlan
    items: LogPlan | None
    users: LogPlan | None
    impressions: LogPlan | None

    @property
    def logs(self) -> list[LogPlan]:
        """The logs that there are."""
        return [log for log in (self.events, self.items, self.users, self.impressions) if log is not None]

    @property
    def has_time(self) -> bool:
        """The events have times."""
        return self.events.has("time")

    @property
    def has_sessions(self) -> bool:
        """The events have session ids, or times to cut by."""
        return self.has_time or self.events.has("session")

    @property
    def stored_impressions(self) -> Impressions | None:
        """What is stored of impressions; None where there are none."""
        rule = self.config.data.impressions_from_events
        if rule is not None:
            labels = (rule.label,) if rule.negatives else tuple(label.name for label in self.events.labels)
            return Impressions(labels=labels, has_requests=rule.negatives > 0)
        if self.impressions is None:
            return None
        return Impressions(
            labels=tuple(label.name for label in self.impressions.labels),
            has_positions=self.impressions.has("position"),
            has_requests=self.impressions.has("request"),
            has_weights=self.impressions.has("weight"),
        )


def make_plan(config: Config) -> Plan:
    """Finds the logs and checks that they have what the configuration names.

    Raises:
        UserError: a file or column is missing, or keys contradict each other.
    """
    data = config.data
    if data.events is None:
        raise UsageError("`data.events`: name the log of events (or a `data.recipe`).")
    check_patterns(data.filters)
    _check_features(config)
    _check_labels(data.labels)
    events = open_log("events", data.events)
    items = open_log("items", data.items) if data.items else None
    users = open_log("users", data.users) if data.users else None
    impressions = open_log("impressions", data.impressions) if data.impressions else None
    _check_events(config, events, impressions)
    _check_impressions(data, events)
    forget = read_forget_lists(data.forget)
    plans = {
        "events": _plan_events(config, events, impressions),
        "items": _plan_items(config, items) if items else None,
        "users": _plan_side(users, config.features.users, "features.users") if users else None,
        "impressions": LogPlan(impressions, *_roles_and_labels(impressions, data.labels)) if impressions else None,
    }
    return Plan(config, **{kind: plan and replace(plan, forget=forget) for kind, plan in plans.items()})  # type: ignore[arg-type]  # events are there


def _check_features(config: Config) -> None:
    features = config.features
    names: set[str] = {"item_id"}
    for side in ("items", "users", "events"):
        for feature in getattr(features, side):
            _check_feature(feature, side)
            _check_cross(feature, getattr(features, side), side)
            if feature.name in names:
                raise UsageError(
                    f"`features.{side}`: the name {feature.name} is taken; names are unique over all sides."
                )
            names |= {feature.name, feature.name + WEIGHTS} if feature.weight_separator else {feature.name}
    for column, count in Counter(features.display).items():
        if count > 1:
            raise UsageError(f"`features.display`: names {column} {count} times; once is enough.")
    for key, wanted, source in (
        ("features.items", features.items, "items"),
        ("features.display", features.display, "items"),
        ("features.users", features.users, "users"),
    ):
        if wanted and getattr(config.data, source) is None:
            what = "the catalogue" if source == "items" else "the user profiles"
            raise UsageError(f"`{key}` needs `data.{source}`, {what}.")


def _check_feature(feature: FeatureConfig, side: str) -> None:
    kinds = _KINDS[side]
    if feature.kind not in kinds:
        raise UsageError(
            f"`features.{side}` {feature.name}: kind must be {', '.join(kinds[:-1])} or {kinds[-1]}, not "
            f"{feature.kind}."
        )
    if feature.name == _KEYS_OF_ROLES[side]:
        raise UsageError(
            f"`features.{side}`: the name {feature.name} would be stored as {side[:-1]}_{feature.name}, which is a "
            "role; choose another `name` and give the `column`."
        )
    if feature.standardize and side != "items":
        raise UsageError(f"`features.{side}` {feature.name}: `standardize` is for features of items alone.")
    if feature.vocabulary is not None:
        given_values(feature)
    check_encoder(feature)
    if feature.vectors is not None:
        _check_vectors(feature, feature.vectors)


def _check_vectors(feature: FeatureConfig, file: str) -> None:
    try:
        shape, dtype = (vectors := open_vectors(file)).shape, vectors.dtype
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"feature {feature.name}: `vectors`: {file} is no readable .npy file: {reason}") from None
    if len(shape) != 2 or shape[1] != feature.dim or dtype.kind != "f":
        raise UsageError(
            f"feature {feature.name}: `vectors`: {file} must hold floats of shape (rows, {feature.dim}), the feature's "
            f"`dim`; holds {dtype} of shape {shape}."
        )


def _check_cross(feature: FeatureConfig, features: Sequence[FeatureConfig], side: str) -> None:
    fit = [one.name for one in features if _has_one_code(one) and one.cross is None and one.kind != "counter"]
    for name in feature.cross or ():
        if name not in fit:
            raise UsageError(
                f"`features.{side}` {feature.name}: `cross` names {name}, which must be a feature of one code; "
                f"{suggest(name, fit)}"
            )


def _has_one_code(feature: FeatureConfig) -> bool:
    return not (feature.is_vector or feature.multivalued)


def _check_counters(config: Config, events: Log) -> None:
    fit = ["user", ITEM_ID, *(one.name for one in config.features.items if _has_one_code(one))]
    for feature in config.features.events:
        where = f"`features.events` {feature.name}"
        if feature.kind != "counter":
            continue
        if feature.of not in fit:
            raise UsageError(
                f"{where}: `of` must be user or a feature of items with one code. Received: {feature.of!r}; "
                f"{suggest(feature.of or '', fit)}"
            )
        if feature.window_seconds is not None and "time" not in events.roles:
            raise UsageError(f"{where}: `window_seconds` needs events with times (`data.events.columns.time`).")
        if feature.event_types is not None and "event_type" not in events.roles:
            raise UsageError(f"{where}: `event_types` needs event types: name `data.events.columns.event_type`.")


def _check_labels(labels: Iterable[Label]) -> None:
    names: set[str] = set()
    for label in labels:
        if label.name in names:
            raise UsageError(f"`data.labels`: the name {label.name} is taken; names of labels are unique.")
        if isinstance(label.value, float) and not math.isfinite(label.value):
            raise UsageError(f"`data.labels` {label.name}: `value` must be a finite number or a text.")
        names.add(label.name)


def _check_events(config: Config, events: Log, impressions: Log | None) -> None:
    data = config.data
    if "time" not in events.roles and "order" not in events.roles:
        raise UsageError(
            f"{events.files[0].path}: the events need a time or an order; name a column under "
            f"`data.events.columns.time` or `.order`. Columns: {', '.join(events.files[0].columns)}."
        )
    if not data.target_events:
        raise UsageError("`data.target_events`: must be `all` or name at least one event type.")
    if data.target_events != "all" and "event_type" not in events.roles:
        raise UsageError("`data.target_events` needs event types: name `data.events.columns.event_type`.")
    if impressions is not None and "time" not in events.roles:
        raise UsageError(
            "`data.impressions` needs events with times (`data.events.columns.time`), to stand before them."
        )
    check_split(data.split, has_time="time" in events.roles)
    _check_counters(config, events)


def _check_impressions(data: Data, events: Log) -> None:
    rule, key = data.impressions_from_events, "data.impressions_from_events"
    if rule is None:
        return
    if data.impressions is not None:
        raise UsageError(f"`{key}`: must be left out, since `data.impressions` names what was shown.")
    if not rule.negatives:
        if not any(label.column in events.columns for label in data.labels):
            raise UsageError(f"`{key}`: needs `data.labels` of events, or `negatives` above 0, to have two outcomes.")
        unused = {"popular_share": rule.popular_share, "label": rule.label, "seed": rule.seed}
        for name, value in unused.items():
            if value != type(rule).model_fields[name].default:
                raise UsageError(f"`{key}.{name}`: says nothing where `negatives` is 0; leave it out.")


def _plan_events(config: Config, log: Log, impressions: Log | None) -> LogPlan:
    data = config.data
    fields, labels = _roles_and_labels(log, data.labels)
    for label in data.labels:
        if label not in labels and (impressions is None or label.column not in impressions.columns):
            log.require(label.column, f"data.labels {label.name}")
    fields += tuple(_feature_fields(log, config.features.events, "event_", "features.events"))
    for column, text in data.filters.require.items():
        kind: FieldKind = "number" if Comparison.parse(column, text).is_number else "text"
        fields += (Field(REQUIRE_PREFIX + column, log.require(column, "data.filters.require"), kind),)
    for column in data.filters.exclude:
        fields += (Field(EXCLUDE_PREFIX + column, log.require(column, "data.filters.exclude"), "text"),)
    return LogPlan(log, fields, labels, data.filters)


def _plan_items(config: Config, log: Log) -> LogPlan:
    plan = _plan_side(log, config.features.items, "features.items")
    display = tuple(
        Field(f"display_{name}", log.require(name, "features.display"), "text") for name in config.features.display
    )
    return LogPlan(log, plan.fields + display)


def _plan_side(log: Log, features: Iterable[FeatureConfig], key: str) -> LogPlan:
    prefix = "user_" if log.kind == "users" else "item_"
    return LogPlan(log, _role_fields(log) + tuple(_feature_fields(log, features, prefix, key)))


def _roles_and_labels(log: Log, labels: Iterable[Label]) -> tuple[tuple[Field, ...], tuple[Label, ...]]:
    """The fields of a log's roles and labels, and the labels whose column it has."""
    own = tuple(label for label in labels if label.column in log.columns)
    fields = tuple(
        Field(LABEL_PREFIX + label.name, label.column, "text" if isinstance(label.value, str) else "number")
        for label in own
    )
    return _role_fields(log) + fields, own


def _role_fields(log: Log) -> tuple[Field, ...]:
    fields = []
    for role in ROLES[log.kind]:
        if role in log.roles:
            column, kind = log.roles[role], _ROLE_KINDS[role]
            if kind == "id" and column in log.integer_columns:
                kind = "integer_id"
            fields.append(Field(role, column, kind, role not in _MAY_BE_EMPTY, log.source.time_unit))
    return tuple(fields)


def _feature_fields(log: Log, features: Iterable[FeatureConfig], prefix: str, key: str) -> Iterator[Field]:
    for feature in features:
        if feature.cross is None and feature.kind != "counter":
            yield (field := _feature_field(log, feature, prefix, key))
            if feature.weight_separator is not None:
                yield replace(field, name=f"{field.name}{WEIGHTS}", kind="weights")


def _feature_field(log: Log, feature: FeatureConfig, prefix: str, key: str) -> Field:
    column = log.require(feature.column or feature.name, f"{key} {feature.name}")
    name = prefix + feature.name
    if feature.kind == "numerical":
        return Field(name, column, "number")
    if feature.kind == "multimodal":
        return Field(name, column, "vector", dim=feature.dim, file=feature.vectors)
    if feature.multivalued:
        return Field(
            name,
            column,
            "texts",
            separator=feature.separator,
            max_values=feature.max_values,
            weight_separator=feature.weight_separator,
        )
    if feature.kind == "image":
        return Field(name, column, "image", feature=feature)
    return Field(name, column, "text", feature=feature if feature.encoder else None)


__all__ = ["EXCLUDE_PREFIX", "LABEL_PREFIX", "REQUIRE_PREFIX", "ROW", "LogPlan", "Plan", "make_plan"]
