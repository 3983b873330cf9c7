"""Going back to an earlier version and forth again."""

from pathlib import Path

import pytest

from serving.rollback import rollback
from serving.versions import Model, ModelSource
from tests.serving.test_versions import Loader, make
from tfrec.errors import UserError
from tfrec.manifest import write_manifest
from tfrec.publishing import next_version


def names(model: Path) -> list[str]:
    return sorted(path.name for path in model.iterdir())


def test_back_by_one_by_number_and_forth_again(tmp_path: Path) -> None:
    model = tmp_path / "shop"
    for version in ("1", "2", "003"):
        make(model, version)
    load = Loader()
    served = Model("shop", ModelSource(model), load)
    served.poll()
    assert served.available() == [3]
    assert rollback(model) == model / "2"
    assert names(model) == ["003.withdrawn", "1", "2"]
    served.poll()
    assert served.available() == [2]
    assert rollback(model, to=1) == model / "1"
    served.poll()
    assert served.available() == [1]
    assert next_version(model) == 4  # the number of a withdrawn version is not given again
    assert rollback(model, to=2) == model / "2"
    served.poll()
    assert (served.available(), names(model)) == ([2], ["003.withdrawn", "1", "2"])
    assert load.calls == ["003", "2", "1", "2"]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        (None, "has no version before the one that answers; there are 4"),
        (3, "has no version 3; there are 4 and withdrawn none"),
    ],
)
def test_where_there_is_nothing_to_go_back_to(tmp_path: Path, to: int | None, message: str) -> None:
    make(tmp_path / "shop", "4")
    with pytest.raises(UserError, match=message):
        rollback(tmp_path / "shop", to)
    with pytest.raises(UserError, match="no such directory"):
        rollback(tmp_path / "none")
    assert names(tmp_path / "shop") == ["4"]


def test_damaged_version_is_not_gone_back_to(tmp_path: Path) -> None:
    model = tmp_path / "shop"
    old = make(model, "1")
    make(model, "2")
    write_manifest(old, {})
    (old / "good").write_text("other")
    with pytest.raises(UserError, match=r"shop/1"):
        rollback(model)
    assert names(model) == ["1", "2"]


def test_name_that_is_taken_stops_it_before_anything_moves(tmp_path: Path) -> None:
    model = tmp_path / "shop"
    for version in ("1", "2", "3", "3.withdrawn"):
        make(model, version)
    with pytest.raises(UserError, match=r"3\.withdrawn: is there already"):
        rollback(model, to=1)
    assert names(model) == ["1", "2", "3", "3.withdrawn"]
    make(model, "1.withdrawn")
    assert rollback(model, to=3) == model / "3"
