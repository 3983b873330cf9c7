"""`tfrec doctor`: what could go wrong is looked for before compute is spent, each finding with its mend."""

import glob
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tfrec.config import Config, FeatureConfig, load
from tfrec.errors import UserError
from tfrec.features import different_options
from tfrec.transforms import FIRST_VALUE, Bins, Vocabulary

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from beam_jobs.plan import LogPlan
    from beam_jobs.sources import Log, LogKind
    from tfrec.schema import Feature, Schema

Status = Literal["ok", "warn", "fail"]

SAMPLE_ROWS = 5000

LOGS: tuple["LogKind", ...] = ("events", "items", "users", "impressions")
GIB = 1 << 30
_MAKES = "tfrec preprocess makes them"
EXTRAS = {
    "beam": "tfrec preprocess",
    "serving": "tfrec serve",
    "retrieval": "ScaNN indexes and two_tower",
}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    mend: str = ""


def examine(config: Path | None = None, overrides: Sequence[str] = ()) -> list[Check]:
    """Checks the environment and, where a configuration is given, everything that can be known of it beforehand."""
    checks = [_python(), *_packages(), _cpu(), _memory(), _disk(Path("."))]
    if config is None:
        return checks
    try:
        parsed = load(config, overrides)
    except UserError as error:
        return [*checks, _refused("config", error)]
    checks.append(Check("config", "ok", f"{config}: every key is known"))
    checks.append(_disk(Path(parsed.data.out), name="disk of data.out"))
    for name, examination in (
        ("logs", _logs),
        ("model", _model),
        ("evaluation", _evaluation),
        ("dataset", _dataset),
    ):
        checks += _guarded(name, examination, parsed)
    return checks


def _refused(name: str, error: UserError) -> Check:
    """A failed check; messages say the mend behind a semicolon, where it is not plain from the rule."""
    found, _, mend = str(error).partition("; ")
    return Check(name, "fail", found, mend or "correct it in the configuration")


def _guarded(name: str, examination: Callable[[Config], Iterator[Check]], config: Config) -> list[Check]:
    """The checks of one examination; what it refuses is a failed check, and so is a package that is missing."""
    checks: list[Check] = []
    try:
        checks.extend(examination(config))
    except UserError as error:
        checks.append(_refused(name, error))
    except ImportError as error:
        checks.append(Check(name, "fail", f"cannot be examined: {error}", "see the packages above"))
    return checks


def _logs(config: Config) -> Iterator[Check]:
    """Files, columns, and the first rows of each log as preprocessing would check them."""
    if config.data.events is None and config.data.recipe is None:
        yield Check("logs", "fail", "neither data.events nor data.recipe is given", "name the log of events")
        return
    from beam_jobs.plan import make_plan
    from beam_jobs.recipes import prepared
    from beam_jobs.sources import open_log

    resolved: Config | None = config
    if config.data.recipe is not None:
        try:
            resolved = prepared(config)
        except UserError as error:
            resolved = None
            yield Check("recipe", "fail", str(error), "download the data set, or correct data.recipe")
        else:
            found = "its sources are made" if resolved else "its sources are not made yet"
            yield Check("recipe", "ok", f"{config.data.recipe.name}: {found}", "" if resolved else _MAKES)
    if resolved is not None or config.data.events is not None:
        for plan in make_plan(resolved or _given_alone(config)).logs:
            yield _files(plan.log)
            yield _sample(plan)
        return
    for kind in LOGS:
        if source := getattr(config.data, kind):
            yield _files(open_log(kind, source))


def _files(log: "Log") -> Check:
    size = sum(file.size_bytes for file in log.files)
    return Check(f"{log.kind}: files", "ok", f"{len(log.files)} files, {size / GIB:.2f} GiB, columns found")


def _given_alone(config: Config) -> Config:
    """The configuration without what hangs on logs that its recipe has still to make."""
    features, data = config.features, config.data
    kept: dict[str, object] = {} if data.items else {"items": (), "display": ()}
    kept |= {} if data.users else {"users": ()}
    labels = data.labels if data.impressions else ()
    return config.model_copy(
        update={
            "features": features.model_copy(update=kept),
            "data": data.model_copy(update={"labels": labels}),
        }
    )


def _sample(plan: "LogPlan") -> Check:
    from beam_jobs.reading import check_rows
    from beam_jobs.sources import Batch, list_fragments, read_batches

    name = f"{plan.kind}: first rows"
    fragments = list_fragments(plan.log)
    if not fragments:
        return Check(name, "ok", "rows of tables are read by the job alone")
    batch = next(iter(read_batches(fragments[0], plan.columns, plan.log.source, plan.images)), None)
    if batch is None:
        return Check(name, "fail", "no row in the first file", "correct data.*.files")
    result = check_rows(Batch(batch.file, batch.frame.head(SAMPLE_ROWS), batch.broken), plan)
    total = sum(count for (_, outcome, _), count in result.counts.items() if outcome == "input")
    rejected = {reason: n for (_, outcome, reason), n in result.counts.items() if outcome == "rejected"}
    share = sum(rejected.values()) / max(1, total)
    if not rejected:
        return Check(name, "ok", f"{total} rows, none rejected")
    worst = ", ".join(f"{reason} ({n})" for reason, n in sorted(rejected.items(), key=lambda pair: -pair[1])[:3])
    status: Status = "fail" if share > 0.5 else "warn"
    return Check(
        name, status, f"{share:.1%} of {total} rows rejected: {worst}", "look at the column, its unit or format"
    )


def _model(config: Config) -> Iterator[Check]:
    """Names and options of model and objective; on the dataset's schema, where there is one, the whole model."""
    from tfrec.models import build, check_options, resolve
    from tfrec.objectives import build_objective
    from tfrec.schema import SCHEMA, Schema

    options = dict(config.model)
    name = options.pop("name", None)
    check_options(resolve(name), str(name), options)
    if config.objective is not None and "name" in config.objective:
        build_objective(config.objective)
    dataset = Path(config.data.out)
    if not (dataset / SCHEMA).is_file():
        yield Check("model", "ok", f"{name}: every option is known")
        return
    schema = Schema.read(dataset)
    build(schema, config.model, config.objective, request_time=config.features.request_time)
    yield Check("model", "ok", f"{name}: fits the schema of {dataset} ({schema.counts.get('items', 0)} items)")


def _evaluation(config: Config) -> Iterator[Check]:
    if config.evaluation.filter_seen and config.data.repeats == "keep":
        yield Check(
            "evaluation",
            "warn",
            "evaluation.filter_seen leaves out items of the history, but data.repeats: keep lets them be targets",
            "data.repeats: first, or evaluation.filter_seen: false; right as it is where no user repeats an item",
        )
    else:
        yield Check("evaluation", "ok", f"filter_seen {config.evaluation.filter_seen}, repeats {config.data.repeats}")


def _dataset(config: Config) -> Iterator[Check]:
    """Whether the dataset is whole, and made by this configuration from these logs as far as its schema says."""
    from tfrec.manifest import MANIFEST, verify
    from tfrec.schema import Schema

    dataset = Path(config.data.out)
    if not (dataset / MANIFEST).is_file():
        yield Check("dataset", "ok", f"{dataset}: not made yet", "tfrec preprocess makes it")
        return
    verify(dataset)
    schema = Schema.read(dataset)
    differences = [*_different_features(config, schema), *_differences(config, schema)]
    newer = [path for path in _local_files(config) if path.stat().st_mtime > (dataset / MANIFEST).stat().st_mtime]
    differences += [f"{path} is newer" for path in newer]
    if differences:
        found = f"{dataset}: not what this configuration makes now: {'; '.join(differences)}"
        yield Check("dataset", "warn", found, "tfrec preprocess makes it again")
    else:
        yield Check("dataset", "ok", f"{dataset}: whole, and of this configuration (filters are not compared)")


def _differences(config: Config, schema: "Schema") -> list[str]:
    data, targets = config.data, config.data.target_events
    pairs = {
        "data.repeats": (data.repeats, schema.repeats),
        "data.split": (data.split, schema.split),
        "data.labels": (data.labels, schema.labels),
        "data.target_events": (targets, schema.target_event_types or "all"),
        "histories.max_events": (config.histories.max_events, schema.max_events),
        "features.display": (config.features.display, schema.display),
    }
    if schema.session_gap_seconds is not None:
        pairs["histories.session_gap_seconds"] = (config.histories.session_gap_seconds, schema.session_gap_seconds)
    return [f"{key} is {now!r}, was {then!r}" for key, (now, then) in pairs.items() if now != then]


def _different_features(config: Config, schema: "Schema") -> list[str]:
    from tfrec.schema import ITEM_ID

    sides = {"item": config.features.items, "user": config.features.users, "event": config.features.events}
    wanted = {one.name: (side, one) for side, features in sides.items() for one in features}
    stored = {one.name: one for one in schema.features if one.name != ITEM_ID}
    differences = [f"feature {name} differs" for name in sorted(wanted.keys() ^ stored.keys())]
    for name in sorted(wanted.keys() & stored.keys()):
        side, one = wanted[name]
        if (side, one.kind) != (stored[name].side, stored[name].kind):
            differences.append(f"feature {name} differs")
        else:
            differences += [f"feature {name}: {what}" for what in _different_options(one, stored[name])]
    return differences


def _different_options(config: FeatureConfig, feature: "Feature") -> list[str]:
    """What the schema knows of a feature's options; bins that fall together and rare values make it smaller."""
    transform = feature.transform
    most: dict[str, tuple[int, int]] = {}
    if isinstance(transform, Bins) and config.boundaries is None:
        most["bins"] = (config.bins, len(transform.boundaries) + 1)
    if isinstance(transform, Vocabulary):
        most["max_size"] = (config.max_size, transform.size - FIRST_VALUE)
    found = [f"{key} is {now!r}, was {then!r}" for key, (now, then) in different_options(config, feature).items()]
    return found + [f"{key} is {now}, was more ({then})" for key, (now, then) in most.items() if then > now]


def _local_files(config: Config) -> list[Path]:
    sources = [getattr(config.data, kind) for kind in LOGS]
    patterns = [pattern for source in sources if source for pattern in source.files]
    return [Path(name) for pattern in patterns for name in sorted(glob.glob(pattern))]


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info[:2] == (3, 11):
        return Check("Python", "ok", found)
    return Check("Python", "warn", found, "3.11 is what tfrec is tested with")


def _packages() -> list[Check]:
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in importlib.metadata.requires("tfrec") or ()]
    except importlib.metadata.PackageNotFoundError:
        return [Check("packages", "warn", "tfrec is not installed here", "pip install -e .[beam,serving,retrieval]")]
    base = [requirement for requirement in requirements if requirement.marker is None]
    checks = [_group("packages", base, "fail", "pip install -r requirements.txt")]
    for extra, purpose in EXTRAS.items():
        group = [item for item in requirements if item.marker and item.marker.evaluate({"extra": extra})]
        checks.append(_group(f"packages for {purpose}", group, "warn", f"pip install tfrec[{extra}]"))
    return checks


def _group(name: str, requirements: "Sequence[Requirement]", status: Status, mend: str) -> Check:
    problems, found = [], []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{requirement.name} is missing")
            continue
        found.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if problems:
        return Check(name, status, "; ".join(problems), mend)
    return Check(name, "ok", ", ".join(found))


def _cpu() -> Check:
    flags = _cpu_flags()
    found = f"{os.cpu_count()} cores, {platform.machine()}"
    if platform.machine() == "x86_64" and flags and "avx2" not in flags:
        return Check("CPU", "warn", f"{found}, no AVX2", "ScaNN needs AVX2; export with --index exact here")
    return Check("CPU", "ok", found + (", AVX2" if "avx2" in flags else ""))


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available < 3 * GIB:
        return Check(
            "memory", "warn", found, "below 3 GiB training and preprocessing may be killed: stop other programs"
        )
    return Check("memory", "ok", found)


def _disk(folder: Path, *, name: str = "disk") -> Check:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    found = f"{free / GIB:.1f} GiB free at {folder}"
    if free < GIB // 5:
        return Check(name, "fail", found, "free some space")
    if free < 5 * GIB:
        return Check(name, "warn", found, "below 5 GiB a large data set may not fit")
    return Check(name, "ok", found)
