import json

import numpy as np
import polars as pl
import pytest

from beam_jobs.analysis import fit_item_feature, fit_item_ids, rank_values
from beam_jobs.arranging import ITEM_IDS
from beam_jobs.encoding import code_map, encode_column
from beam_jobs.parts import sample_by_hash
from beam_jobs.staging import encode_texts, factorize, write_item_ids
from tfrec.config import FeatureConfig, ItemIds
from tfrec.errors import UserError
from tfrec.transforms import Vocabulary, read_values, write_values


def make_staging(folder, items, train_counts, seen=()):
    """A staging folder with an items file, and events of the items in `train_counts` and `seen`."""
    ids = sorted({*items["item_id"], *train_counts, *seen})
    write_item_ids(folder / ITEM_IDS, [pl.Series(ids)])
    (folder / "items").mkdir()
    items.write_ipc(folder / "items" / "00000.arrow")
    places = [ids.index(item) for item in [*train_counts, *seen]]
    counts = [*train_counts.values(), *[0] * len(seen)]
    for bucket in range(2):
        (folder / "parts" / f"0000{bucket}").mkdir(parents=True)
        part = pl.DataFrame({"item": places, "train_count": [count // 2 + count % 2 * bucket for count in counts]})
        part.write_ipc(folder / "parts" / f"0000{bucket}" / "item.arrow")
    return folder


def make_items(**columns):
    size = len(next(iter(columns.values())))
    return pl.DataFrame({"item_id": [f"i{n}" for n in range(size)], **columns})


def test_values_rank_by_count_then_value():
    parts = pl.DataFrame({"value": ["b", "a", "c", "b", "d"], "count": [1, 2, 2, 1, 1]})
    assert rank_values(parts, 1, 10).to_list() == ["a", "b", "c", "d"]
    assert rank_values(parts, 2, 2).to_list() == ["a", "b"]
    assert rank_values(pl.DataFrame(), 1, 10).to_list() == []


def test_the_catalogue_is_the_items_file_and_every_item_of_an_event(tmp_path):
    staging = make_staging(tmp_path, make_items(x=[1, 2, 3]), {"i1": 5, "new": 7, "i0": 5}, seen=["late"])
    ids, counts, retired = fit_item_ids(staging, ItemIds())
    assert ids.to_list() == ["new", "i0", "i1", "i2", "late"]
    assert counts.tolist() == [0, 0, 7, 5, 5, 0, 0]
    assert not retired.any()
    missing = pl.read_ipc(staging / "items" / "99999.arrow")["item_id"].to_list()
    assert sorted(missing) == ["late", "new"]


@pytest.mark.parametrize(
    ("settings", "expected"), [({"min_count": 1}, ["new", "i0", "i1"]), ({"max_size": 2}, ["new", "i0"])]
)
def test_rare_items_leave_the_catalogue(tmp_path, settings, expected, caplog):
    staging = make_staging(tmp_path, make_items(x=[1, 2, 3]), {"i1": 5, "new": 7, "i0": 5}, seen=["late"])
    assert fit_item_ids(staging, ItemIds(**settings))[0].to_list() == expected
    line = "item ids: 5, more than `features.item_id.max_size` (2); those of the fewest training events are unknown"
    assert [record.getMessage() for record in caplog.records] == ([line] if "max_size" in settings else [])


def test_a_vocabulary_is_read_with_its_escapes(tmp_path):
    values = ["plain", "two\nlines", "back\\slash", "", "tab\t", '"quoted",x', " ", "\u2028", "null"]
    write_values(tmp_path / "v.txt", values)
    known = Vocabulary(file="v.txt", size=len(values) + 2)
    asked = pl.Series([value for value in values if value] + ["other"])
    assert code_map(asked, known, tmp_path).tolist() == [2, 3, 4, 6, 7, 8, 9, 10, 1, 1]


def test_a_catalogue_of_nothing_is_refused(tmp_path):
    staging = make_staging(tmp_path, make_items(x=[1]), {"i0": 1})
    with pytest.raises(UserError, match=r"`features.item_id.min_count`: no item has so many training events"):
        fit_item_ids(staging, ItemIds(min_count=2))


def test_samples_are_the_smallest_hashes():
    hashes = np.array([5, 1, 9, 3], np.uint64)
    sample = sample_by_hash(hashes, pl.Series([50.0, 10.0, 90.0, 30.0]), 3)
    assert sample.rows() == [(1, 10.0), (3, 30.0), (5, 50.0)]


def test_items_outside_the_catalogue_count_for_no_vocabulary(tmp_path):
    items = make_items(item_brand=["a", "b", "b", None], item_tags=[["x", "y"], ["y"], ["z", "z"], None])
    staging = make_staging(tmp_path, items, {"i0": 1, "i1": 1, "i3": 1})
    fit_item_ids(staging, ItemIds(min_count=1))
    brand = FeatureConfig(name="brand", kind="categorical")
    tags = FeatureConfig(name="tags", kind="categorical", multivalued=True, max_values=3)
    found = [fit_item_feature(staging, tmp_path, feature, 1000, {}) for feature in (brand, tags)]
    assert [read_values(tmp_path / feature.transform.file) for feature in found] == [["a", "b"], ["y", "x"]]
    assert [feature.table_sizes for feature in found] == [(4,), (4,)]
    assert found[1].num_codes == 3


def test_more_values_than_declared_are_cut_and_told(tmp_path, caplog):
    staging = make_staging(tmp_path, make_items(item_brand=["a", "b", "b", "c", "c", "c"]), {"i0": 1})
    fit_item_ids(staging, ItemIds())
    for max_size, told in ((3, []), (2, ["feature brand: more than 2 values (`max_size`); the rarest are unknown"])):
        feature = FeatureConfig(name="brand", kind="categorical", max_size=max_size)
        fitted = fit_item_feature(staging, tmp_path, feature, 1000, {})
        assert read_values(tmp_path / fitted.transform.file) == ["c", "b", "a"][:max_size]
        assert [record.getMessage() for record in caplog.records] == told


def test_fits_on_a_sample_do_not_depend_on_the_order_of_items(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"item_price": rng.random(3000), "item_image": rng.normal(size=(3000, 4)).tolist()}
    items = make_items(**columns).with_columns(pl.col("item_image").cast(pl.List(pl.Float32)))
    price = FeatureConfig(name="price", kind="numerical", bins=8)
    image = FeatureConfig(name="image", kind="multimodal", dim=4, groups=2, dims_per_group=2, quantiles=3)
    outcomes = []
    for name, frame in (("one", items), ("two", items[::-1])):
        (tmp_path / name).mkdir()
        staging = make_staging(tmp_path / name, frame, {"i0": 1})
        fit_item_ids(staging, ItemIds())
        quality = {}
        features = [fit_item_feature(staging, staging, feature, 1000, quality) for feature in (price, image)]
        outcomes.append((features, (staging / "artifacts" / "image.npz").read_bytes(), json.dumps(quality)))
    assert outcomes[0] == outcomes[1]
    boundaries = outcomes[0][0][0].transform.boundaries
    assert np.allclose(boundaries, np.arange(1, 8) / 8, atol=0.06)  # 3 sigma of a quantile of 1000 uniform values
    assert boundaries != tuple(np.quantile(items["item_price"], np.arange(1, 8) / 8))  # it was a sample


def test_a_feature_without_any_value_is_refused(tmp_path):
    items = make_items(item_text=pl.Series([None, None], dtype=pl.String))
    staging = make_staging(tmp_path, items, {"i0": 1})
    fit_item_ids(staging, ItemIds())
    feature = FeatureConfig(name="text", kind="text", dim=4, groups=2)
    with pytest.raises(UserError, match=r"`features.items` text: no item of the catalogue has a value"):
        fit_item_feature(staging, tmp_path, feature, 1000, {})


def test_columns_are_coded_as_the_transforms_code_values(tmp_path):
    frame = pl.DataFrame(
        {
            "item_id": ["i0", "i1", "i2"],
            "item_brand": ["a", None, "unseen"],
            "item_tags": [["y", "unseen"], None, ["x"]],
            "item_price": [0.5, None, 2.0],
        }
    )
    fitted_on = make_items(item_brand=["b", "a"], item_tags=[["x"], ["y"]], item_price=[1.0, 2.0])
    staging = make_staging(tmp_path, fitted_on, {"i0": 1})
    fit_item_ids(staging, ItemIds())
    table = encode_texts(frame)
    configs = {
        "brand": FeatureConfig(name="brand", kind="categorical"),
        "tags": FeatureConfig(name="tags", kind="categorical", multivalued=True, max_values=3),
        "price": FeatureConfig(name="price", kind="numerical", bins=2),
    }
    features = {name: fit_item_feature(staging, tmp_path, one, 1000, {}) for name, one in configs.items()}
    codes = {name: encode_column(table, f"item_{name}", one, tmp_path).tolist() for name, one in features.items()}
    assert codes["brand"] == [[2], [1], [1]]
    assert codes["tags"] == [[3, 1, 0], [1, 0, 0], [2, 0, 0]]
    assert codes["price"] == [[2], [1], [3]]
    assert features["brand"].transform.encode(frame["item_brand"], tmp_path).tolist() == [2, 1, 1]
    assert features["price"].transform.encode(frame["item_price"], tmp_path).tolist() == [2, 1, 3]


def test_texts_are_factorised_in_their_sorted_order():
    codes, texts = factorize(pl.Series(["b", None, "a", "b"]))
    assert (codes.to_list(), texts.to_list()) == ([1, None, 0, 1], ["a", "b"])
    codes, texts = factorize(pl.Series([10, 9, None, 10]))
    assert (codes.to_list(), texts.to_list()) == ([0, 1, None, 0], ["10", "9"])
    codes, texts = factorize(pl.Series([["b", "a"], None, ["b"]]))
    assert (codes.to_list(), texts.to_list()) == ([[1, 0], None, [1]], ["a", "b"])
