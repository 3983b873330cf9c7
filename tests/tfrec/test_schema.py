"""The schema: a file that reads back as it was, columns of the item table, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tfrec.errors import UserError
from tfrec.schema import Feature, Label, Schema, Split
from tfrec.transforms import Bins, GroupQuantiles, Vocabulary


def vocabulary(name: str, size: int) -> Vocabulary:
    return Vocabulary(file=f"vocabularies/{name}.txt", size=size)


def make_schema() -> Schema:
    quantiser = GroupQuantiles(file="artifacts/image.npz", groups=3, dims_per_group=2, quantiles=4, input_dim=8)
    return Schema(
        features=(
            Feature(name="item_id", side="item", kind="categorical", column="sku", transform=vocabulary("item_id", 12)),
            Feature(
                name="tags",
                side="item",
                kind="categorical",
                column="tags",
                transform=vocabulary("tags", 7),
                multivalued=True,
                num_codes=4,
            ),
            Feature(name="age", side="user", kind="numerical", column="age", transform=Bins(boundaries=(20.0, 40.0))),
            Feature(name="image", side="item", kind="multimodal", column="i", transform=quantiser, num_codes=3),
        ),
        labels=(Label(name="liked", column="stars", operator=">=", value=4),),
        max_events=50,
        repeats="first",
        split=Split(kind="temporal", validation_from=10, test_from=20),
        counts={"users": 1, "items": 10, "events": 3, "train_events": 1, "impressions": 0},
    )


def test_written_schema_reads_back_as_the_same(tmp_path: Path) -> None:
    schema = make_schema()
    schema.write(tmp_path)
    assert Schema.read(tmp_path) == schema
    first = (tmp_path / "schema.json").read_bytes()
    schema.write(tmp_path)
    assert (tmp_path / "schema.json").read_bytes() == first


def test_item_columns_stand_one_behind_the_other_without_other_sides() -> None:
    schema = make_schema()
    assert schema.item_columns() == {"item_id": slice(0, 1), "tags": slice(1, 5), "image": slice(5, 8)}
    assert schema.num_items == 12
    assert [feature.name for feature in schema.side("user")] == ["age"]
    with pytest.raises(KeyError, match="colour"):
        schema.feature("colour")


def test_quantised_features_have_a_table_a_group_and_multivalued_ones_share_one() -> None:
    schema = make_schema()
    image, tags = schema.feature("image"), schema.feature("tags")
    assert len(image.table_sizes) == 3
    assert min(image.table_sizes) >= 4**2  # quantiles ** dims_per_group cells
    assert (image.vector_dim, tags.vector_dim) == (8, None)
    assert tags.table_sizes == (7,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, r"format version 99, this tfrec reads 2"),
        ({"split": {"kind": "sometimes"}}, r"`split\.kind`"),
        ({"colour": "red"}, r"`colour`: Extra inputs are not permitted"),
        ({"max_events": None}, r"`max_events`"),
        ({"labels": [{"name": "../x", "column": "c", "operator": "==", "value": 1}]}, r"`labels\.0\.name`"),
    ],
)
def test_damaged_schema_is_one_line_with_the_mend(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    make_schema().write(tmp_path)
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=message) as caught:
        Schema.read(tmp_path)
    assert "run `tfrec preprocess` again" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_file_that_is_no_schema_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(UserError, match="run `tfrec preprocess` again"):
        Schema.read(tmp_path)


def test_missing_schema_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`tfrec preprocess` makes one"):
        Schema.read(tmp_path)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", "1a", "a b"])
def test_names_are_plain_words(name: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        Feature(name=name, side="item", kind="numerical", column="x", transform=Bins(boundaries=(1.0,)))
    with pytest.raises(ValidationError, match="should match pattern"):
        Label(name=name, column="x", operator="==", value=1)


@pytest.mark.parametrize("change", [{"validation": "no"}, {"test_from": "5"}, {"fraction": "0.1"}])
def test_split_takes_no_text_for_a_number(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="should be a valid"):
        Split.model_validate({"kind": "temporal", **change})
