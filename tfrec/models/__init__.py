"""The models: functions that compose layers, looked up by the name that a config gives.

A builder is `name(schema, *, objective=None, request_time=False, ...) -> RetrievalModel`, or, for a ranking model,
`name(schema, *, labels, objective=None, ...) -> RankingModel`; its keyword arguments are the config's `model:` section.
Its module's `OBJECTIVE` is the `objective:` section that it is trained by where a config
names none.
"""

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tfrec.config import suggest
from tfrec.errors import UsageError
from tfrec.objectives import build_objective
from tfrec.schema import Schema

MODELS = {
    "bert4rec": "tfrec.models.bert4rec:bert4rec",
    "bert4rec_ranking": "tfrec.models.bert4rec_ranking:bert4rec_ranking",
    "dcn_v2": "tfrec.models.dcn_v2:dcn_v2",
    "din": "tfrec.models.din:din",
    "dnn": "tfrec.models.dnn:dnn",
    "gru4rec": "tfrec.models.gru4rec:gru4rec",
    "gru4rec_ranking": "tfrec.models.gru4rec_ranking:gru4rec_ranking",
    "heterrec": "tfrec.models.heterrec:heterrec",
    "hpgr": "tfrec.models.hpgr:hpgr",
    "hpgr_pretrain": "tfrec.models.hpgr_pretrain:hpgr_pretrain",
    "hstu": "tfrec.models.hstu:hstu",
    "hstu_ranking": "tfrec.models.hstu_ranking:hstu_ranking",
    "mmoe": "tfrec.models.mmoe:mmoe",
    "mtgr": "tfrec.models.mtgr:mtgr",
    "pinnerformer": "tfrec.models.pinnerformer:pinnerformer",
    "popularity": "tfrec.models.popularity:popularity",
    "sasrec": "tfrec.models.sasrec:sasrec",
    "sasrec_ranking": "tfrec.models.sasrec_ranking:sasrec_ranking",
    "two_tower": "tfrec.models.two_tower:two_tower",
    "wukong": "tfrec.models.wukong:wukong",
}
_OWN_ARGUMENTS = ("schema", "objective", "request_time", "labels")


def build(
    schema: Schema,
    model: Mapping[str, Any],
    objective: Mapping[str, Any] | None = None,
    *,
    request_time: bool = False,
    labels: Literal["all"] | Sequence[str] = "all",
) -> keras.Model:
    """The model that a config's sections ask for, with fresh weights and an empty item table.

    Args:
        schema: of the dataset.
        model: `name` (of `MODELS`, or module:function) and the builder's keyword arguments.
        objective: `name` and keyword arguments; None = the model's own; without `name` it changes options of that.
        request_time: `features.request_time`, for retrieval models alone.
        labels: `ranking.labels`, which a ranking model predicts.

    Raises:
        UsageError: unknown model, option or label, with the nearest known one; an option's value that the model
            refuses.
    """
    options = dict(model)
    name = options.pop("name", None)
    builder = resolve(name)
    default = getattr(inspect.getmodule(builder), "OBJECTIVE", None)
    layer = None if default is None and objective is None else build_objective(objective, default)
    checked = check_options(builder, str(name), options)
    _check_objective(layer, builder, str(name))
    if is_ranking(builder) and request_time:
        raise UsageError("`features.request_time`: must be false: a ranking model knows when its candidates are shown.")
    own = {"labels": _labels(schema, labels)} if is_ranking(builder) else {"request_time": request_time}
    try:
        return builder(schema, objective=layer, **own, **checked)
    except ValueError as error:
        raise UsageError(f"`model`: {name}: {error}") from error


def _check_objective(layer: Any, builder: Callable[..., Any], name: str) -> None:
    if layer is not None and is_ranking(builder) == hasattr(layer, "set_counts"):
        kind = "ranking" if is_ranking(builder) else "retrieval"
        raise UsageError(
            f"`objective.name`: {type(layer).__name__} is none for a {kind} model, which {name} is; leave it out."
        )


def is_ranking(builder: Callable[..., Any]) -> bool:
    """Whether a builder makes a ranking model: one that asks for `labels`."""
    return "labels" in inspect.signature(builder).parameters


def _labels(schema: Schema, wanted: Literal["all"] | Sequence[str]) -> tuple[str, ...]:
    known = schema.impressions.labels if schema.impressions is not None else ()
    if not known:
        raise UsageError("`model.name`: a ranking model learns from impressions with labels; the dataset has none.")
    for name in known if wanted == "all" else wanted:
        if name not in known:
            raise UsageError(f"`ranking.labels`: no impression has a label {name!r}; {suggest(name, known)}")
    return known if wanted == "all" else tuple(wanted)


def resolve(name: object) -> Callable[..., keras.Model]:
    """The builder of that name."""
    if not isinstance(name, str):
        raise UsageError(f"`model.name`: must be given; {suggest('', list(MODELS))}")
    module, colon, attribute = MODELS.get(name, name).partition(":")
    if not colon:
        raise UsageError(f"`model.name`: unknown model {name!r}; {suggest(name, list(MODELS))}")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"`model.name`: {name} cannot be imported ({error}).") from None


def check_options(builder: Callable[..., Any], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, checked against the names and types of the builder's signature."""
    known = [key for key in inspect.signature(builder).parameters if key not in _OWN_ARGUMENTS]
    hints = typing.get_type_hints(builder, include_extras=True)
    checked = {}
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"`model.{key}`: unknown option of {name}; {suggest(key, ('name', *known))}")
        hint = hints.get(key, Any)
        try:
            checked[key] = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise UsageError(f"`model.{key}`: {message}. Received: {value!r:.100}.") from None
    return checked


__all__ = ["MODELS", "build", "check_options", "is_ranking", "resolve"]
