"""The command line from outside: exit codes, one-line errors, what is imported, what goes to which stream."""

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from tests.tfrec.models.made import make_schema
from tfrec.cli import app
from tfrec.errors import UsageError
from tfrec.evaluation import Evaluation
from tfrec.manifest import write_manifest
from tfrec.ranks import Ranks

RUNNER = CliRunner()
COMMANDS = [
    "demo",
    "init",
    "doctor",
    "preprocess",
    "data",
    "train",
    "sweep",
    "evaluate",
    "compare",
    "report",
    "export",
    "serve",
    "rollback",
    "replay",
    "recommend",
]


def tfrec(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tfrec", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=120)


def test_help_lists_every_command() -> None:
    done = tfrec("--help")
    assert done.returncode == 0
    assert [name for name in COMMANDS if name not in done.stdout] == []


@pytest.mark.parametrize("command", [*COMMANDS, "data compare", "data inspect", "data verify", "data cache"])
def test_command_has_help(command: str) -> None:
    done = RUNNER.invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.stdout


def test_help_imports_no_framework() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from tfrec.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'tensorflow', 'keras', 'apache_beam', 'numpy', 'pyarrow', 'polars', 'pydantic', 'jax'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    def seconds() -> float:
        before = os.times()
        assert tfrec("--help").returncode == 0
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds() for _ in range(3)) < 0.5


def test_version_is_the_package_s() -> None:
    import tfrec as package

    assert tfrec("--version").stdout.strip() == package.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "train"),
        (["train"], "--config"),
        (["train", "--config", "x.yaml", "--sett", "a=b"], "--set"),
        (["serve", "models", "--engine", "triton"], "builtin"),
        (["serve", "models", "--rest-port", "70000"], "65535"),
    ],
)
def test_wrong_use_is_exit_code_2(arguments: list[str], message: str) -> None:
    done = tfrec(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("tfrec: ")
    assert done.stdout == ""
    return lines[0]


def test_missing_config_is_one_line(tmp_path: Path) -> None:
    done = tfrec("train", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "none.yaml: no such configuration file" in one_line(done)


def test_misspelt_key_is_one_line_with_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {out: d}\ntraining: {epoch: 3}\n")
    done = tfrec("train", "--config", str(path))
    assert done.returncode == 2
    assert "`training.epoch`: unknown key; did you mean `epochs`?" in one_line(done)


def test_set_is_repeatable_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {out: d}\n")
    done = tfrec("train", "--config", str(path), "--set", "training.epochs=3", "--set", "training.seed=-1")
    assert done.returncode == 2
    assert "`training.seed`" in one_line(done)


@pytest.mark.parametrize("command", [["evaluate", "RUN"], ["export", "RUN", "--to", "models/shop"]])
def test_what_a_run_was_trained_by_cannot_be_set(command: list[str]) -> None:
    done = tfrec(*command, "--set", "export.k=3", "--set", "training.epochs=3")
    assert done.returncode == 2
    assert "--set training.epochs=3: a run is trained already" in one_line(done)


def test_missing_dataset_is_exit_code_1(tmp_path: Path) -> None:
    done = tfrec("data", "inspect", str(tmp_path))
    assert done.returncode == 1
    assert "manifest.json" in one_line(done)


def test_beam_options_stand_behind_two_dashes(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("data: {out: d}\n")
    done = tfrec("preprocess", "--config", str(path), "more.yaml")
    assert done.returncode == 2
    assert "more.yaml" in one_line(done)


def test_recommend_needs_one_question() -> None:
    done = tfrec("recommend", "models/shop")
    assert done.returncode == 2
    assert "--history" in one_line(done)


def test_compare_needs_two_runs() -> None:
    assert tfrec("compare", "a").returncode == 2


def test_compare_names_the_command_that_is_missing(tmp_path: Path) -> None:
    done = tfrec("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    assert done.returncode == 1
    assert "run `tfrec evaluate" in one_line(done)


def test_refused_write_is_one_line(tmp_path: Path) -> None:
    code = (
        "import errno, tfrec.cli, beam_jobs.guess\n"
        "def refuse(*_, **__): raise OSError(errno.ENOSPC, 'No space left on device', 'out.yaml')\n"
        "beam_jobs.guess.guess_config = refuse\n"
        "import sys; sys.argv = ['tfrec', 'init', 'x.csv']\n"
        "tfrec.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert one_line(done) == "tfrec: out.yaml: No space left on device; free some and run the same command again."


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_is_one_line_and_fails(number: signal.Signals) -> None:
    code = (
        "import tfrec.cli, beam_jobs.guess, signal, time, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # jobs in the background may ignore it
        "def wait(*_, **__):\n"
        "    print('waiting', flush=True)\n"
        "    time.sleep(60)\n"
        "beam_jobs.guess.guess_config = wait\n"
        "sys.argv = ['tfrec', 'init', 'x.csv']\n"
        "tfrec.cli.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.strip().splitlines()[-1].startswith("tfrec: interrupted")
    assert "Traceback" not in errors


def test_data_verify_names_the_changed_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    write_manifest(tmp_path, {})
    assert tfrec("data", "verify", str(tmp_path)).returncode == 0
    (tmp_path / "a.txt").write_text("two")
    done = tfrec("data", "verify", str(tmp_path))
    assert done.returncode == 1
    assert "a.txt: its SHA-256 differs" in one_line(done)


def evaluated(directory: Path, better: list[int], *, request_time: bool = False) -> Path:
    """A run's evaluation of four users whose targets have so many better candidates."""
    users = np.arange(len(better), dtype=np.int32)
    protocol = {"task": "retrieval", "split": "test", "dataset": "d", "filter_seen": True, "request_time": request_time}
    protocol |= {"ks": [1], "bootstrap_samples": 100}
    directory.mkdir(parents=True)
    Evaluation(protocol, {}, {}, {}, Ranks(users, users, users + 2, np.array(better, np.int32), users * 0)).write(
        directory
    )
    return directory


def test_compare_shows_figures_differences_and_what_is_not_comparable(tmp_path: Path) -> None:
    first, second = evaluated(tmp_path / "a", [0, 0, 0, 0]), evaluated(tmp_path / "b", [3, 3, 3, 3])
    other = evaluated(tmp_path / "c", [0, 0, 0, 0], request_time=True)
    plot = tmp_path / "plot.svg"
    done = RUNNER.invoke(app, ["compare", str(first), f"two=seeds,{second}", str(other)])
    assert done.exit_code == 1  # no run `seeds`
    done = RUNNER.invoke(app, ["compare", str(first), f"two={second},{first}", str(other), "--plot", str(plot)])
    assert done.exit_code == 0, done.exception
    text = " ".join(done.stdout.replace("│", " ").split())
    assert "recall@1 1.0000 [1.0000, 1.0000] 0.5000 [0.5000, 0.5000] 1.0000 [1.0000, 1.0000]" in text
    assert f"two minus {first}" in text
    assert "recall@1 -0.5000 [-0.5000, -0.5000] p 0.020 worse" in text
    assert f"! {other} minus {first}: not comparable, `request_time` is True and False" in text
    names = {node.text for node in ElementTree.fromstring(plot.read_text()).iter() if node.tag.endswith("text")}
    assert {"two", str(first), "recall@1", "mrr"} <= names


def test_init_writes_a_config_that_loads_and_overwrites_none(tmp_path: Path) -> None:
    log = tmp_path / "events.csv"
    log.write_text("user,item,ts\n" + "".join(f"u{n % 3},i{n % 5},{1_700_000_000 + n}\n" for n in range(30)))
    out = tmp_path / "shop.yaml"
    done = tfrec("init", str(log), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out)
    columns = yaml.safe_load(out.read_text())["data"]["events"]["columns"]
    assert columns == {"user_id": "user", "item_id": "item", "time": "ts"}
    again = tfrec("init", str(log), "--out", str(out))
    assert again.returncode == 1
    assert "exists already" in one_line(again)


def test_init_wants_files(tmp_path: Path) -> None:
    done = tfrec("init", str(tmp_path), "--out", str(tmp_path / "x.yaml"))
    assert done.returncode == 1
    assert one_line(done) == f"tfrec: {tmp_path}: is a folder; name the files in it."


def test_init_takes_the_columns_that_it_is_told(tmp_path: Path) -> None:
    log = tmp_path / "events.csv"
    log.write_text("a,b,c\n" + "".join(f"x{n % 3},y{n % 5},{1_700_000_000 + n}\n" for n in range(30)))
    out = tmp_path / "shop.yaml"
    named = [f"--column={text}" for text in ("user_id=b", "item_id=a", "time=c")]
    done = tfrec("init", str(log), "--out", str(out), *named)
    assert done.returncode == 0, done.stderr
    columns = yaml.safe_load(out.read_text())["data"]["events"]["columns"]
    assert columns == {"user_id": "b", "item_id": "a", "time": "c"}
    assert tfrec("init", str(log), "--out", str(tmp_path / "x.yaml"), "--column", "a").returncode == 2


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --config e.csv/b.yaml", "e.csv/b.yaml: no such configuration file."),
        ("data verify e.csv", "e.csv: no manifest.json there, so it is not a finished directory."),
        ("demo --out e.csv", "e.csv: File exists."),
        ("demo --out e.csv/x", "e.csv/x: Not a directory."),
        ("compare cut empty", "cut/evaluation.json: not an evaluation; run `tfrec evaluate cut"),
        ("compare empty cut", "empty/evaluation.json: not an evaluation; run `tfrec evaluate empty"),
    ],
)
def test_file_in_place_of_a_directory_and_damaged_evaluations_are_one_line(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tfrec.cli import main

    (tmp_path / "e.csv").write_text("a,b\n")
    for name, text in (("cut", "{"), ("empty", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tfrec", *command.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code in (1, 2)
    told = capsys.readouterr().err
    assert told.startswith(f"tfrec: {message}")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--all-users", "d"], "--all-users DATASET and --out DIR belong together"),
        (["--history", "a", "--out", "o"], "--all-users DATASET and --out DIR belong together"),
        (["--history", "a", "--all-users", "d", "--out", "o"], "give either --history a,b,c, or --similar ITEM, or"),
        (["--similar", "a", "--deny", "b"], "--similar takes no filters"),
        (["--all-users", "d", "--out", "o", "--where", "brand=x"], "--where do not go with --all-users"),
        (["--history", "a", "--where", "brand"], "--where brand: must look like feature=value,value"),
        (["--history", "a", "--times", "1700000000000"], "--times 1700000000000: must be whole Unix seconds before"),
        (["--history", "a", "--times", "today"], "--times today: must be whole Unix seconds before"),
    ],
)
def test_recommend_says_what_does_not_go_together(arguments: list[str], message: str, tmp_path: Path) -> None:
    extra = tmp_path / "shop" / "1" / "assets.extra"
    extra.mkdir(parents=True)
    (extra / "items.jsonl").write_text("")
    make_schema().write(extra)
    done = RUNNER.invoke(app, ["recommend", str(tmp_path / "shop"), *arguments])
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def test_recommend_says_that_no_item_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Strict:
        version, fields = 3, ("title",)

        def unknown(self, items: list[str]) -> list[str]:
            return []

        def recommend(self, history: list[str], *, where: dict[str, list[str]], **_: object) -> list[tuple[str, float]]:
            return [("b", 0.5)] if where == {"brand": ["known"]} else []

        def display(self, item: str) -> tuple[str, ...]:
            return ("a title",)

    monkeypatch.setattr("tfrec.answers.PublishedModel.newest", lambda model: Strict())
    ask = ["recommend", "models/shop", "--history", "a", "--where"]
    found, nothing = (RUNNER.invoke(app, [*ask, f"brand={value}"]) for value in ("known", "other"))
    assert (found.exit_code, found.stderr, "a title" in found.stdout) == (0, "", True)
    assert (nothing.exit_code, nothing.stderr) == (
        0,
        "tfrec: no item passes; unknown ids and values of a filter match nothing.\n",
    )
