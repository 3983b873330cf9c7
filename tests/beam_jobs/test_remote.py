"""Logs in object stores, and the job that a cloud runner would be given; nothing leaves this machine."""

import io
import json
import shutil
import tarfile
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
from apache_beam.io.filesystem import FileMetadata, FileSystem
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.gcp import bigquery as beam_bigquery
from apache_beam.io.gcp import bigquery_tools
from apache_beam.portability.api import beam_runner_api_pb2
from google.cloud.bigquery_storage import types

from beam_jobs.engine import Engine
from beam_jobs.options import pipeline_options
from beam_jobs.plan import make_plan
from beam_jobs.preprocess import run
from beam_jobs.reading import ReadLog
from tfrec.config import parse
from tfrec.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class CountingFile(io.BytesIO):
    def readinto(self, buffer):
        size = super().readinto(buffer)
        StoreFileSystem.bytes_read += size
        return size

    def read(self, size=-1):
        content = super().read(size)
        StoreFileSystem.bytes_read += len(content)
        return content


class StoreFileSystem(FileSystem):
    """A store of objects by their names, for paths that begin with store://; Beam finds it by being defined."""

    objects: ClassVar[dict[str, bytes]] = {}
    bytes_read = 0

    @classmethod
    def scheme(cls):
        return "store"

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        head, _, tail = path.rpartition("/")
        return head, tail

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        for path, content in self.objects.items():
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(content))

    def match_files(self, file_metas, pattern):
        return (meta for meta in file_metas if fnmatchcase(meta.path, pattern))

    def open(self, path, mime_type="application/octet-stream", compression_type="auto"):
        return CountingFile(self.objects[path])

    def exists(self, path):
        return path in self.objects

    def size(self, path):
        return len(self.objects[path])

    def metadata(self, path):
        return FileMetadata(path, len(self.objects[path]))

    def _refuse(self, *args, **kwargs):
        raise OSError("the store is read alone")

    mkdirs = create = copy = rename = last_updated = checksum = delete = _refuse


def config_of(folder, pattern):
    return {
        "data": {"out": str(folder / "dataset"), "events": {"files": [pattern]}},
        "features": {"events": [{"name": "device", "kind": "categorical"}]},
    }


@pytest.fixture
def store(tmp_path):
    """Two Parquet files of events as objects, and as files below `tmp_path`; most of them is a column nobody wants."""
    rng = np.random.default_rng(0)
    for part in range(2):
        frame = pl.DataFrame(
            {
                "user_id": [f"u{n % 7}" for n in range(70)],
                "item_id": [f"i{n % 11}" for n in range(70)],
                "time": [1_600_000_000 + 100 * part + n for n in range(70)],
                "device": ["phone", "desk"] * 35,
                "payload": [rng.bytes(50_000) for _ in range(70)],
            }
        )
        frame.write_parquet(tmp_path / f"events-{part}.parquet")
        StoreFileSystem.objects[f"store://logs/2026/events-{part}.parquet"] = (
            tmp_path / f"events-{part}.parquet"
        ).read_bytes()
    StoreFileSystem.bytes_read = 0
    yield StoreFileSystem.objects
    StoreFileSystem.objects.clear()


def test_a_store_gives_the_dataset_of_the_files_and_sends_the_columns_that_are_asked_for(tmp_path, store):
    local = run(parse(config_of(tmp_path, str(tmp_path / "events-*.parquet"))))
    manifest = (local / "manifest.json").read_bytes()
    remote = run(parse(config_of(tmp_path, "store://logs/2026/events-*.parquet")))
    assert (remote / "manifest.json").read_bytes() == manifest
    assert 0 < StoreFileSystem.bytes_read < 0.1 * sum(map(len, store.values()))


class Cell:
    def __init__(self, value):
        self.value = value

    def as_py(self):
        return self.value


class TableClient:
    """Stands for BigQuery's storage API: two streams of the rows, and the requests that were made."""

    requests: ClassVar[list[types.ReadSession]] = []
    rows: ClassVar[list[dict]] = []

    def create_read_session(self, parent, read_session, max_stream_count):
        self.requests.append(read_session)
        return types.ReadSession(streams=[{"name": "0"}, {"name": "1"}])

    def read_rows(self, name, **options):
        names = self.requests[-1].read_options.selected_fields
        rows = [{key: Cell(row[key]) for key in names} for row in self.rows[int(name) :: 2]]
        return SimpleNamespace(rows=lambda: rows)


def test_a_table_gives_the_dataset_of_a_file_and_is_asked_for_the_columns_in_use(tmp_path, store, monkeypatch):
    (tmp_path / "events-1.parquet").unlink()
    local = run(parse(config_of(tmp_path, str(tmp_path / "events-0.parquet"))))
    expected = [path.read_bytes() for path in sorted(local.glob("*/*.tfrecord"))]
    frame = pl.read_parquet(tmp_path / "events-0.parquet")
    kinds = {pl.Int64: "INTEGER", pl.Binary: "BYTES"}
    fields = [SimpleNamespace(name=name, type=kinds.get(kind, "STRING")) for name, kind in frame.schema.items()]
    table = SimpleNamespace(schema=SimpleNamespace(fields=fields), numRows=70, numBytes=frame.estimated_size())
    asked = []

    class Wrapper:
        _bigquery_client = staticmethod(lambda options: None)
        from_pipeline_options = classmethod(lambda cls, options: cls())

        def __init__(self, **options):
            pass

        def get_table(self, *parts):
            asked.append(parts)
            return table

    monkeypatch.setattr(bigquery_tools, "BigQueryWrapper", Wrapper)
    monkeypatch.setattr(beam_bigquery.bq_storage, "BigQueryReadClient", TableClient)
    monkeypatch.setattr(TableClient, "requests", [])
    monkeypatch.setattr(TableClient, "rows", frame.to_dicts())
    remote = run(parse(config_of(tmp_path, "bigquery://shop.logs.events")))
    assert asked[0] == ("shop", "logs", "events")
    assert {request.table for request in TableClient.requests} == {"projects/shop/datasets/logs/tables/events"}
    assert [*TableClient.requests[0].read_options.selected_fields] == ["device", "item_id", "time", "user_id"]
    assert [path.read_bytes() for path in sorted(remote.glob("*/*.tfrecord"))] == expected


@pytest.mark.parametrize("path", ["bigquery://events", "bigquery://shop.logs."])
def test_a_table_is_named_by_three_parts(tmp_path, path):
    with pytest.raises(UserError, match=r"must look like bigquery://PROJECT.DATASET.TABLE"):
        make_plan(parse(config_of(tmp_path, path)))


def test_google_and_amazon_paths_are_read_by_beams_own_file_systems():
    kinds = {path: type(FileSystems.get_filesystem(path)).__name__ for path in ("gs://bucket/x", "s3://bucket/x")}
    assert kinds == {"gs://bucket/x": "GCSFileSystem", "s3://bucket/x": "S3FileSystem"}


@pytest.fixture
def source_tree(tmp_path):
    """The project without what packing it leaves behind."""
    tree = tmp_path / "tree"
    for name in ("beam_jobs", "serving", "tfrec"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    return tree


def test_dataflow_is_given_the_graph_and_the_package_of_setup_py(tmp_path, store, source_tree):
    plan = make_plan(parse(config_of(tmp_path, "store://logs/2026/events-*.parquet")))
    staged = tmp_path / "staged"
    staged.mkdir()
    options = ["--runner=DataflowRunner", "--project=shop", "--region=europe-west1", "--job_name=preprocess"]
    options += [
        f"--staging_location={staged}",
        f"--temp_location={tmp_path}",
        "--no_auth",
        "--dataflow_endpoint=http://localhost",
    ]
    options += [f"--template_location={tmp_path}/template.json", f"--setup_file={source_tree}/setup.py"]
    with Engine(pipeline_options(options, shared_disk=True)).pipeline() as pipeline:  # a template is written, not run
        _ = pipeline | "Read events log" >> ReadLog(plan.events, tmp_path / "staging", 2)
    template = json.loads((tmp_path / "template.json").read_text())
    assert template["environment"]["sdkPipelineOptions"]["options"]["project"] == "shop"
    (graph,) = staged.rglob("pipeline.pb")
    components = beam_runner_api_pb2.Pipeline.FromString(graph.read_bytes()).components
    steps = {transform.unique_name for transform in components.transforms.values()}
    for step in ("Read and check events", "Scatter events", "Stage events"):
        assert any(f"Read events log/{step}" in name for name in steps), step
    (package,) = staged.rglob("workflow.tar.gz")
    with tarfile.open(package) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "beam_jobs/reading.py", "beam_jobs/recipes/shop.py", "tfrec/transforms.py"} <= packed
    assert not any(name.startswith("tests") for name in packed)
