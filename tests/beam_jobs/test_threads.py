"""Work in threads on Beam's own runner."""

import threading

import apache_beam as beam
import polars as pl
import pytest

from beam_jobs.engine import Engine
from beam_jobs.options import pipeline_options
from beam_jobs.threads import InThreads
from tfrec.errors import UserError


class Squares(InThreads):
    def work(self, element):
        if element == 13:
            raise UserError("13: is unlucky.")
        in_another = threading.current_thread().name.startswith("ThreadPoolExecutor")
        if in_another != (pl.thread_pool_size() > 1):
            raise AssertionError(f"In {threading.current_thread()}.")
        return [element**2, beam.pvalue.TaggedOutput("odd", element)] if element % 2 else [element**2]


def squares_of(numbers, path):
    with Engine(pipeline_options([])).running() as pipeline:
        found = pipeline | beam.Create(numbers) | beam.ParDo(Squares()).with_outputs("odd", main="all")
        for name in ("all", "odd"):
            _ = (
                found[name]
                | f"List {name}" >> beam.combiners.ToList()
                | f"Write {name}" >> beam.Map(lambda values, name: (path / name).write_text(str(sorted(values))), name)
            )
    return [(path / name).read_text() for name in ("all", "odd")]


@pytest.fixture(params=[1, 3], autouse=True, ids=["one thread", "three threads"])
def threads(request, monkeypatch):
    monkeypatch.setattr(pl, "thread_pool_size", lambda: request.param)


@pytest.mark.parametrize("count", [1, 10])
def test_every_element_is_worked_on_once(count, tmp_path):
    expected = [[number**2 for number in range(count)], list(range(1, count, 2))]
    assert squares_of(range(count), tmp_path) == [str(values) for values in expected]


def test_mistakes_come_out_as_they_are(tmp_path):
    with pytest.raises(UserError, match=r"^13: is unlucky\.$"):
        squares_of(range(20), tmp_path)


def test_outputs_keep_the_order_of_elements():
    step = Squares()
    step.setup()
    step.start_bundle()
    found = [output for number in range(0, 20, 2) for output in step.process(number)]
    assert len(found) == 10 - (pl.thread_pool_size() if pl.thread_pool_size() > 1 else 0)
    found += [output.value for output in step.finish_bundle()]
    step.teardown()
    assert found == [number**2 for number in range(0, 20, 2)]
