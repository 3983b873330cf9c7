import json
from types import SimpleNamespace

import numpy as np
import pytest

from tfrec.config import parse
from tfrec.errors import UserError
from tfrec.evaluation import Evaluation
from tfrec.publishing import copy_evaluation, refuse_worse
from tfrec.ranks import Ranks


def write_evaluation(directory, *, request_time=False, split="test"):
    directory.mkdir(parents=True, exist_ok=True)
    counts = np.arange(30, dtype=np.int32)
    protocol = {"task": "retrieval", "split": split, "dataset": "d", "filter_seen": True, "request_time": request_time}
    protocol |= {"ks": [10], "bootstrap_samples": 100}
    Evaluation(protocol, {}, {}, {}, Ranks(counts, counts, counts + 2, counts, counts * 0)).write(directory)


@pytest.fixture
def run(tmp_path):
    write_evaluation(tmp_path / "run")
    return SimpleNamespace(directory=tmp_path / "run", config=parse({"data": {"out": "d"}}))


@pytest.mark.parametrize("request_time", [True, False])
def test_model_of_other_inputs_is_refused(run, tmp_path, request_time):
    write_evaluation(run.directory, request_time=request_time)
    write_evaluation(tmp_path / "shop/3/assets.extra", request_time=not request_time)
    with pytest.raises(UserError, match=rf"`features.request_time` is {request_time}, .*under another name"):
        refuse_worse(run, tmp_path / "shop")
    write_evaluation(tmp_path / "shop/4/assets.extra", request_time=request_time)
    assert refuse_worse(run, tmp_path / "shop") is None  # equal is not worse


def test_what_is_published_is_the_evaluation_on_the_test_split(run, tmp_path):
    write_evaluation(run.directory, split="validation")
    (tmp_path / "version/assets.extra").mkdir(parents=True)
    document = copy_evaluation(run, tmp_path / "version")
    assert document["protocol"]["split"] == "test"
    copied = tmp_path / "version/assets.extra"
    assert sorted(path.name for path in copied.iterdir()) == ["evaluation.json", "ranks_test.npz"]
    assert json.loads((copied / "evaluation.json").read_text()) == document
    (run.directory / "evaluation.json").unlink()
    assert copy_evaluation(run, tmp_path / "version") is None
