"""Recipes: public data sets, in the form in which their publishers give them out, and a made-up shop, as Parquet.

A recipe writes `events`, `items`, `users` and `impressions`, what it has of them, into `<data.out>.sources/` and fills
those sections of the configuration that it does not have already.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import ValidationError

from tfrec import manifest
from tfrec.config import Config, Section, Source, suggest
from tfrec.errors import UsageError, UserError

RECIPES = {
    "movielens": "beam_jobs.recipes.movielens",
    "amazon_s3rec": "beam_jobs.recipes.amazon",
    "online_retail": "beam_jobs.recipes.online_retail",
    "shop": "beam_jobs.recipes.shop",
}
SECTIONS = ("events", "items", "users", "impressions")

_FORMAT = 1  # of what recipes write; another number makes sources again


class RecipeModule(Protocol):
    """What a module of this package offers."""

    Options: type[Section]
    """The recipe's options."""
    SOURCES: Mapping[str, Mapping[str, Any]]
    """What a section's source says beside its files: roles of columns that are named otherwise, the time unit."""

    def find_inputs(self, path: str | None, options: Any, needed: frozenset[str]) -> list[Path]:
        """The published files that the needed sections are made of; missing ones are a `UserError`."""

    def write(self, directory: Path, inputs: list[Path], options: Any, needed: frozenset[str]) -> None:
        """Writes `<section>.parquet` for the needed sections that the data set has."""


def prepare(config: Config) -> Config:
    """Writes the sources of `data.recipe` and fills the sections of `data` that are not given.

    Sources that are already there, made of the same files with the same options, are used again. A configuration
    without a recipe is returned as it is.
    """
    work = _work(config)
    if work is None:
        return config
    made_from = {**work.made_from, "inputs": {path.name: manifest.sha256_of(path) for path in work.inputs}}
    if not _is_there(work.directory, made_from):
        _check_replaceable(work.directory)
        with manifest.published(work.directory) as temporary:
            work.module.write(temporary, work.inputs, work.options, work.needed)
            manifest.write_manifest(temporary, {"made_from": made_from})
    return work.fill(config)


def prepared(config: Config) -> Config | None:
    """What `prepare` returns where the sources were made with these options before, without reading the inputs.

    Returns:
        None where they are still to be made.

    Raises:
        UserError: the recipe or an option is unknown, or a published file is missing.
    """
    work = _work(config)
    if work is None:
        return config
    with suppress(UserError, OSError):
        made_from = manifest.verify(work.directory).get("made_from", {})
        known = json.loads(json.dumps(work.made_from))
        if {key: made_from.get(key) for key in known} == known:
            return work.fill(config)
    return None


@dataclass(frozen=True)
class _Work:
    """What a configuration's recipe has to do."""

    module: RecipeModule
    options: Section
    needed: frozenset[str]
    inputs: list[Path]
    directory: Path
    made_from: dict[str, Any]

    def fill(self, config: Config) -> Config:
        sources = {
            section: Source(files=(str(self.directory / f"{section}.parquet"),), **self.module.SOURCES.get(section, {}))
            for section in sorted(self.needed)
            if (self.directory / f"{section}.parquet").is_file()
        }
        return config.model_copy(update={"data": config.data.model_copy(update=sources)})


def _work(config: Config) -> _Work | None:
    recipe = config.data.recipe
    needed = frozenset(section for section in SECTIONS if getattr(config.data, section) is None)
    if recipe is None or not needed:
        return None
    if recipe.name not in RECIPES:
        raise UsageError(f"data.recipe.name: unknown recipe `{recipe.name}`; {suggest(recipe.name, list(RECIPES))}")
    module = cast(RecipeModule, import_module(RECIPES[recipe.name]))
    options = _options(module, recipe.options)
    made_from = {
        "format": _FORMAT,
        "recipe": recipe.name,
        "options": options.model_dump(mode="json"),
        "sections": sorted(needed),
    }
    inputs = module.find_inputs(recipe.path, options, needed)
    return _Work(module, options, needed, inputs, Path(f"{config.data.out.rstrip('/')}.sources"), made_from)


def _check_replaceable(directory: Path) -> None:
    """What a recipe made may be replaced, and an empty folder; anything else may not."""
    if not os.path.lexists(directory) or (directory.is_dir() and not any(directory.iterdir())):
        return
    with suppress(UserError, OSError):
        if manifest.read_manifest(directory).get("made_from"):
            return
    raise UserError(
        f"{directory}: exists and was not made by a recipe, so it is not replaced; move it away or choose another "
        "`data.out`."
    )


def _options(module: RecipeModule, given: Mapping[str, Any]) -> Section:
    try:
        return module.Options.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            hint = suggest(key, list(module.Options.model_fields))
            raise UsageError(f"data.recipe.options: `{key}`: unknown option; {hint}") from None
        raise UsageError(f"data.recipe.options: `{key}`: {first['msg']}. Received: {first['input']!r:.100}.") from None


def _is_there(directory: Path, made_from: Mapping[str, Any]) -> bool:
    try:
        return bool(manifest.verify(directory).get("made_from") == json.loads(json.dumps(made_from)))
    except (UserError, OSError):
        return False
