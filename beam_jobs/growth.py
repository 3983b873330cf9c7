"""What a dataset takes over from an older one: ids that never move, and fitted parts that stay as they are."""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from beam_jobs.forgetting import ForgetLists
from beam_jobs.pretrained import specification
from tfrec.config import Config, FeatureConfig, different_options, suggest
from tfrec.errors import UsageError, UserError
from tfrec.manifest import MANIFEST, fingerprint, verify
from tfrec.schema import ITEM_ID, Feature, Schema
from tfrec.transforms import FIRST_VALUE, Pretrained, Vocabulary, write_values

LINEAGE = "lineage"
"""Key of the manifest: the datasets that this one grew from, the oldest first."""
_SIDES = {"items": "item", "users": "user", "events": "event"}


@dataclass(frozen=True)
class Growth:
    """An older dataset, checked, and what is fitted anew all the same."""

    directory: Path
    schema: Schema
    manifest: dict[str, Any]
    refitted: tuple[str, ...]
    """Names of features, crosses of such ones among them."""
    forgotten_items: frozenset[str]

    def item_ids(self) -> list[str]:
        """The item ids in the order of their codes; those that are forgotten, now or before, are empty."""
        ids = self.schema.item_vocabulary.read(self.directory)
        return ["" if item_id in self.forgotten_items else item_id for item_id in ids]

    def kept(self, name: str) -> Feature | None:
        """The older dataset's feature, where it is taken over as it is: any but a vocabulary, which grows."""
        if name in self.refitted:
            return None
        feature = self.schema.feature(name)
        return None if isinstance(feature.transform, Vocabulary) else feature

    def copy_files(self, feature: Feature, directory: Path) -> None:
        """Copies what a feature's transform and encoder were fitted to."""
        for part in (feature.transform, feature.encoder):
            for name in part.model_dump().values() if part is not None else ():
                if isinstance(name, str) and name in self.manifest["files"]:
                    (directory / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.directory / name, directory / name)

    def extend(self, feature: Feature, directory: Path, max_size: int) -> Feature:
        """A freshly fitted vocabulary put behind the older one's values, written and returned with its size."""
        vocabulary = feature.transform
        if feature.name in self.refitted or not isinstance(vocabulary, Vocabulary):
            return feature
        old = self.schema.feature(feature.name).transform
        assert isinstance(old, Vocabulary), "Kinds of features are compared first."
        values = append_new(old.read(self.directory), vocabulary.read(directory), max_size)
        write_values(directory / vocabulary.file, values)
        return feature.model_copy(
            update={"transform": vocabulary.model_copy(update={"size": len(values) + FIRST_VALUE})}
        )

    def time_origin(self, first_day: int) -> int:
        """The older dataset's origin of times.

        Args:
            first_day: midnight UTC before the first event, in Unix seconds.

        Raises:
            UserError: an event lies before it.
        """
        origin = self.schema.time_origin
        if first_day < origin:
            raise UserError(
                f"`data.events`: begin on {_day(first_day)}, times of {self.directory} count from {_day(origin)}; "
                "leave out what is earlier, or preprocess without `--from`."
            )
        return origin

    def lineage(self) -> list[dict[str, Any]]:
        """What the manifest says of the datasets that this one grew from."""
        own = {"dataset": fingerprint(self.directory), "refitted": list(self.refitted)}
        return [*self.manifest.get(LINEAGE, []), own]


def append_new(old: Sequence[str], new: Iterable[str], max_size: int) -> list[str]:
    """The old values in their places, then those of the new ones that are not among them; old ones all stay."""
    known = set(old)
    added = [value for value in new if value not in known]
    return [*old, *added[: max(max_size - len(old), 0)]]


def open_growth(path: str | Path, config: Config, forget: ForgetLists, refit: Sequence[str] = ()) -> Growth:
    """Opens the dataset to grow from and compares its features with the configuration's.

    Args:
        path: the older dataset.
        config: the new one's configuration.
        forget: whose ids are erased.
        refit: features that are fitted anew.

    Raises:
        UserError: no dataset, one that was changed, of another format, or of other features.
        UsageError: `refit` names no feature.
    """
    directory = Path(path)
    if not (directory / MANIFEST).is_file():
        raise UserError(f"{directory}: no dataset there ({MANIFEST} is missing); `--from` names one to grow from.")
    schema = Schema.read(directory)
    manifest = verify(directory, whole=True)
    wanted = {one.name: (side, one) for key, side in _SIDES.items() for one in getattr(config.features, key)}
    for name in refit:
        if name == ITEM_ID:
            raise UsageError("`--refit item_id`: the ids of items never move; preprocess without `--from` instead.")
        if name not in wanted:
            raise UsageError(f"`--refit {name}`: no such feature; {suggest(name, list(wanted))}")
    old = {feature.name: feature for feature in schema.features}
    for name in old.keys() - {ITEM_ID} - wanted.keys():
        raise UserError(f"{directory}: has a feature {name}, the configuration has none; add it to `features`.")
    for name, (side, settings) in wanted.items():
        if name not in refit:
            _compare(directory, old.get(name), side, settings)
    crosses = {name for name, (_, one) in wanted.items() if set(one.cross or ()) & set(refit)}
    refitted = tuple(sorted({*refit, *crosses}))
    return Growth(directory, schema, manifest, refitted, frozenset(forget.items))


def check_log(growth: Growth, *, has_time: bool, has_event_types: bool) -> None:
    """Raises a `UserError` where the events have times or types and those of the older dataset had none, or back."""
    for what, old, new in (
        ("times", growth.schema.has_time, has_time),
        ("event types", bool(growth.schema.event_types), has_event_types),
    ):
        if old != new:
            has, has_not = (growth.directory, "`data.events`") if old else ("`data.events`", growth.directory)
            raise UserError(
                f"`data.events.columns`: {has} has {what}, {has_not} has none; preprocess without `--from`."
            )


def _compare(directory: Path, old: Feature | None, side: str, settings: FeatureConfig) -> None:
    name, mend = settings.name, f"fit it anew with `--refit {settings.name}`, or preprocess without `--from`."
    if old is None:
        raise UserError(f"{directory}: has no feature {name}; {mend}")
    if old.side != side:
        raise UserError(f"`features.{side}s` {name}: in {directory} it is a feature of {old.side}s; {mend}")
    for option, (now, then) in different_options(settings, old).items():
        raise UserError(f"`features.{side}s` {name}: `{option}` is {now!r}, in {directory} it was {then!r}; {mend}")
    encoder = old.encoder if isinstance(old.encoder, Pretrained) else None
    if encoder != (specification(settings.encoder) if settings.encoder else None):
        raise UserError(f"`features.{side}s` {name}: `encoder` is not the one that {directory} was made with; {mend}")


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
