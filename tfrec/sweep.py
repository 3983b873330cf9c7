"""`tfrec sweep`: the same budget of settings for every model of a comparison, in one command that goes on where it was.

    OUT/sweep.json               what is tried: models, settings, the dataset
    OUT/first-<hash>/            what models start from, where they have a `first`
    OUT/<model>/trial2-seed0/    ordinary runs: each setting on the first seed, the best one on all
    OUT/results.json results.md trials.csv

The best setting by the validation queries is judged on the test queries. A trial that fails leaves its reason in
`failed.json` of its run and stands so in the table; without that file it is tried again.
"""

import csv
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from tfrec.comparison import Measured, differences, mean_over_seeds, measure, obstacles
from tfrec.config import Config, load, load_sweep
from tfrec.data import Dataset
from tfrec.errors import InterruptionError, UserError
from tfrec.evaluation import deciding_metric, evaluate, read_evaluation
from tfrec.manifest import write_json
from tfrec.metrics import larger_is_better
from tfrec.models import check_options, resolve
from tfrec.runs import RUN, load_run, read_record
from tfrec.space import Experiment, Sweep, Swept, folder_of, settings
from tfrec.tables import difference_rows, markdown_table, measured_rows
from tfrec.training import identity, train

PLAN = "sweep.json"
RESULTS = "results.json"
FAILED = "failed.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One setting of a model, trained with one seed."""

    number: int
    setting: dict[str, Any]
    seed: int
    config: Config
    directory: Path

    @property
    def record(self) -> dict[str, Any] | None:
        """`run.json` of the finished training; None where it is not finished."""
        if not (self.directory / RUN).is_file():
            return None
        record = read_record(self.directory)
        return record if "weights" in record else None

    @property
    def failure(self) -> str | None:
        """Why the training failed, where it did."""
        path = self.directory / FAILED
        return str(json.loads(path.read_text("utf-8"))["reason"]) if path.is_file() else None


@dataclass(frozen=True)
class Row:
    """A model of the comparison: what is tried of it, and by which metric that is judged."""

    name: str
    metric: str
    trials: list[list[Trial]]
    """Of each setting one trial a seed; the first is the one on validation."""
    first: Trial | None
    plan: dict[str, Any]

    def value(self, trial: Trial) -> float | None:
        """What the validation queries say of a trial."""
        record = trial.record
        return None if record is None else record["validation"].get(self.metric)

    def failure(self, trial: Trial) -> str | None:
        """Why there is no such training, where it or what it starts from failed."""
        if self.first is not None and self.first.failure is not None:
            return f"what it starts from failed: {self.first.failure}"
        return trial.failure

    @property
    def best(self) -> list[Trial] | None:
        """The trials of the best setting; of equal ones the first."""
        found = [(value, trials) for trials in self.trials if (value := self.value(trials[0])) is not None]
        sign = 1 if larger_is_better(self.metric) else -1
        return max(found, key=lambda pair: sign * pair[0])[1] if found else None


@dataclass
class Results:
    """What a sweep found so far."""

    out: Path
    rows: list[Row]
    tested: list[Measured] = field(default_factory=list)
    """The best setting of each model on the test queries, the mean over seeds."""

    @property
    def metrics(self) -> list[str]:
        """All metrics of the test, those that decided first."""
        deciding = [row.metric for row in self.rows]
        return list(dict.fromkeys(name for name in [*deciding, *(n for one in self.tested for n in one.metrics)]))

    def trial_rows(self) -> Iterator[tuple[str, ...]]:
        """The table of trials, under `trial_fields`."""
        for row in self.rows:
            best = row.best
            for trials in row.trials:
                trial, record = trials[0], trials[0].record or {}
                value = row.value(trial)
                yield (
                    row.name,
                    str(trial.number),
                    ", ".join(f"{key}={_text(value)}" for key, value in trial.setting.items()) or "as configured",
                    "-" if value is None else f"{value:.4f}",
                    str(record.get("best_epoch") or "-"),
                    f"{record['parameters']:,}" if record else "-",
                    "best" if trials is best else row.failure(trial) or "",
                )

    def test_rows(self) -> list[tuple[str, ...]]:
        """The table of the test, under `test_fields`."""
        return measured_rows(self.tested, self.metrics)

    def difference_rows(self) -> list[tuple[str, ...]]:
        """The paired differences of the other models from the first, under `difference_fields`."""
        return difference_rows([(other, self.tested[0]) for other in self.tested[1:]], self.metrics)

    def write(self) -> None:
        """Writes the tables and all figures; equal results give equal bytes."""
        write_json(self.out / RESULTS, self.document())
        text = f"## Trials\n\n{markdown_table(list(self.trial_rows()), self.trial_fields)}"
        if self.tested:
            text += f"\n## Test\n\n{markdown_table(self.test_rows(), self.test_fields)}"
        if len(self.tested) > 1:
            text += f"\n## Differences\n\n{markdown_table(self.difference_rows(), self.difference_fields)}"
        (self.out / "results.md").write_text(text, encoding="utf-8")
        self._write_csv()

    @property
    def trial_fields(self) -> tuple[str, ...]:
        """Names of the columns of `trial_rows`."""
        metrics = " or ".join(dict.fromkeys(row.metric for row in self.rows))
        return ("model", "trial", "setting", f"validation {metrics}", "best epoch", "parameters", "")

    @property
    def test_fields(self) -> tuple[str, ...]:
        """Names of the columns of `test_rows`."""
        return ("model", "seeds", *self.metrics)

    @property
    def difference_fields(self) -> tuple[str, ...]:
        """Names of the columns of `difference_rows`."""
        return ("difference", "seeds", *self.metrics)

    def document(self) -> dict[str, Any]:
        """All figures."""
        tested = {one.name: one for one in self.tested}
        models = {}
        for row in self.rows:
            best = row.best
            models[row.name] = {
                "metric": row.metric,
                "trials": [self._trial(row, trials[0]) for trials in row.trials],
                "best": best[0].number if best else None,
                "runs": [self._path(trial) for trial in best or [] if trial.record is not None],
                "failed_seeds": {str(trial.seed): trial.failure for trial in best or [] if trial.failure},
                "test": tested[row.name].document() if row.name in tested else None,
                "difference": self._difference(tested.get(row.name)),
            }
        return {"models": models, "compared_with": self.tested[0].name if self.tested else None}

    def _trial(self, row: Row, trial: Trial) -> dict[str, Any]:
        record = trial.record or {}
        kept = {name: record.get(name) for name in ("epochs", "best_epoch", "parameters", "validation")}
        return {
            "run": self._path(trial),
            "setting": trial.setting,
            "seed": trial.seed,
            "value": row.value(trial),
            "failed": row.failure(trial),
            **kept,
        }

    def _difference(self, one: Measured | None) -> dict[str, Any] | None:
        if one is None or one is self.tested[0] or obstacles(one, self.tested[0]):
            return None
        return {name: found._asdict() for name, found in differences(one, self.tested[0]).items()}

    def _path(self, trial: Trial) -> str:
        return trial.directory.relative_to(self.out).as_posix()

    def _write_csv(self) -> None:
        keys = sorted({key for row in self.rows for trials in row.trials for key in trials[0].setting})
        with (self.out / "trials.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["model", "trial", *keys, "metric", "value", "best_epoch", "epochs", "parameters", "failed"])
            for row in self.rows:
                for trials in row.trials:
                    found = self._trial(row, trials[0])
                    chosen = [_text(found["setting"][key]) if key in found["setting"] else "" for key in keys]
                    rest = [found[name] for name in ("value", "best_epoch", "epochs", "parameters", "failed")]
                    table.writerow([row.name, trials[0].number, *chosen, row.metric, *rest])


def sweep(path: Path, out: Path, overrides: Sequence[str] = (), *, progress: bool = True) -> Results:
    """Tries the settings of every model, trains the best ones with every seed, and judges them on the test queries.

    Args:
        path: the configuration with the section `sweep`.
        out: where everything is written; a sweep that was interrupted there goes on.
        overrides: `section.key=value`, for the experiments of all models.
        progress: show bars and lines of the trainings on stderr.

    Raises:
        UserError: a dataset is missing, `out` holds another sweep, or the sweep was interrupted.
    """
    rows = plan(load_sweep(path, overrides), path, out, overrides)
    _take_up(out, rows)
    results = Results(out, rows)
    for row in rows:
        _attempt_all(row, progress)
        if tested := _test(row):
            results.tested.append(tested)
        results.write()
    return results


def plan(section: Sweep, path: Path, out: Path, overrides: Sequence[str]) -> list[Row]:
    """All trials of a sweep, every configuration checked.

    Raises:
        UsageError: an unknown key, model or option.
        UserError: a dataset that is not there.
    """
    own = [override for override in overrides if not override.startswith("sweep.")]
    models = section.models
    if not models:
        models = {str(load(path, own).model.get("name")): Swept()}
    return [_row(section, name, swept, path, out, own) for name, swept in models.items()]


def _row(section: Sweep, name: str, swept: Swept, path: Path, out: Path, overrides: Sequence[str]) -> Row:
    common: dict[str, Any] = {"training.seed": section.seeds[0]}
    if section.metric is not None:
        common["training.validation_metric"] = section.metric
    first = _first(swept.first, path, out, overrides) if swept.first else None
    if first is not None:
        common["training.initialize_from"] = os.path.relpath(first.directory)
    base = _experiment(swept, path, overrides, common)
    tried = settings(section, name, swept)
    trials = []
    for number, setting in enumerate(tried, start=1):
        configs = [
            _experiment(swept, path, overrides, {**common, **setting, "training.seed": seed}) for seed in section.seeds
        ]
        folder = out / folder_of(name)
        trials.append(
            [
                Trial(number, setting, seed, config, folder / f"trial{number}-seed{seed}")
                for seed, config in zip(section.seeds, configs, strict=True)
            ]
        )
    return Row(name, deciding_metric(base), trials, first, _identity(base, first, tried))


def _first(experiment: Experiment, path: Path, out: Path, overrides: Sequence[str]) -> Trial:
    config = _experiment(experiment, path, overrides, {})
    said = json.dumps(identity(config), sort_keys=True, default=str)
    folder = f"first-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    return Trial(0, {}, config.training.seed, config, out / folder)


def _experiment(experiment: Experiment, path: Path, overrides: Sequence[str], changes: Mapping[str, Any]) -> Config:
    """The configuration of a run, checked as far as can be without data."""
    file = Path(experiment.config) if experiment.config else path
    config = load(file, overrides, {**experiment.set, **changes, "sweep": None})
    name = config.model.get("name")
    check_options(resolve(name), str(name), {key: value for key, value in config.model.items() if key != "name"})
    return config


def _identity(base: Config, first: Trial | None, tried: list[dict[str, Any]]) -> dict[str, Any]:
    """What may not change under the runs of a model."""
    said = {
        **identity(base),
        "evaluation": base.evaluation.model_dump(),
        "dataset": Dataset.open(base.data.out).fingerprint,
    }
    said["training"] = {key: value for key, value in said["training"].items() if key != "initialize_from"}
    document = {**said, "first": first and identity(first.config), "settings": tried}
    return dict(json.loads(json.dumps(document, sort_keys=True)))


def _take_up(out: Path, rows: Sequence[Row]) -> None:
    """Writes what is tried, or finds that it is what is tried there already; more models, trials and seeds may come.

    Raises:
        UserError: something else is tried there.
    """
    path = out / PLAN
    there: dict[str, Any] = {}
    if path.is_file():
        try:
            there = dict(json.loads(path.read_text("utf-8")))
        except ValueError:
            raise UserError(f"{path}: not valid JSON; remove {out}, or give another directory with `--out`.") from None
    for row in rows:
        old = dict(there.get(row.name, row.plan))
        old["settings"] = old["settings"] + row.plan["settings"][len(old["settings"]) :]
        if different := [key for key in row.plan if old.get(key) != row.plan[key]]:
            raise UserError(
                f"{out}: holds a sweep of another configuration (`{different[0]}` of {row.name} differs); "
                "give another directory with `--out`, or remove this one."
            )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {**there, **{row.name: row.plan for row in rows}})


def _attempt_all(row: Row, progress: bool) -> None:
    """Trains all settings of a model on the first seed, then the best one on the others."""
    if row.first is not None:
        _attempt(row.first, f"{row.name}, first", progress)
        if row.first.failure is not None:
            return
    for trials in row.trials:
        _attempt(trials[0], f"{row.name}, trial {trials[0].number} of {len(row.trials)}", progress)
    for trial in (row.best or [])[1:]:
        _attempt(trial, f"{row.name}, the best setting with seed {trial.seed}", progress)


def _attempt(trial: Trial, title: str, progress: bool) -> None:
    """Trains, unless that is done or failed before; a failure is written down and stops nothing else."""
    if trial.record is not None or trial.failure is not None:
        return
    chosen = ", ".join(f"{key}={_text(value)}" for key, value in trial.setting.items())
    _log.info("%s%s", title, f": {chosen}" if chosen else "")
    keras.utils.clear_session()  # what earlier trainings left in memory
    try:
        train(trial.config, trial.directory, progress=progress)
    except InterruptionError:
        raise
    except Exception as error:
        if isinstance(error.__cause__ or error, OSError):
            raise  # a full disk says nothing of the setting
        known = isinstance(error, UserError)
        reason = str(error).removeprefix(f"{trial.directory}: ") if known else f"{type(error).__name__}: {error}"
        _log.warning("%s failed: %s", title, reason, exc_info=None if known else error)
        trial.directory.mkdir(parents=True, exist_ok=True)
        write_json(trial.directory / FAILED, {"reason": " ".join(reason.split())})


def _test(row: Row) -> Measured | None:
    """The best setting on the test queries, the mean over the seeds that were trained."""
    finished = [trial for trial in row.best or [] if trial.record is not None]
    for trial in finished:
        if not _is_evaluated(trial.directory):
            _log.info("%s, seed %d: evaluating", row.name, trial.seed)
            evaluate(load_run(trial.directory)).write(trial.directory)
    return mean_over_seeds(row.name, [measure(trial.directory) for trial in finished]) if finished else None


def _is_evaluated(directory: Path) -> bool:
    try:
        read_evaluation(directory)
    except UserError:
        return False
    return True


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


__all__ = ["FAILED", "PLAN", "RESULTS", "Results", "Row", "Trial", "plan", "sweep"]
