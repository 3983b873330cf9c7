import numpy as np

from tests.datasets import make_dataset
from tfrec.raw import raw_values
from tfrec.schema import Feature, Schema
from tfrec.transforms import Bins, Hashed


def make_feature(transform, kind="categorical", **more):
    return Feature(name="f", side="event", kind=kind, column="f", transform=transform, **more)


def test_texts_fall_into_the_buckets_asked_for(tmp_path):
    transform = Hashed(hash_buckets=100_000)
    codes = np.array([[[2], [100_001]], [[1], [0]], [[77_777], [2]]])
    texts = raw_values(make_feature(transform), codes, tmp_path)
    assert texts.shape == (3, 2)
    assert texts[1].tolist() == ["", ""]
    assert transform.encode(texts.ravel()).tolist() == [2, 100_001, 1, 1, 77_777, 2]
    several = raw_values(make_feature(transform, multivalued=True, num_codes=2), codes[:, :, 0], tmp_path)
    assert several.tolist() == texts.tolist()


def test_numbers_and_texts_have_the_codes_asked_for(tmp_path):
    bins = Bins(boundaries=(0.0, 2.5))
    codes = np.array([[2], [3], [4], [1]])
    assert bins.encode(raw_values(make_feature(bins, "numerical"), codes, tmp_path)).tolist() == [2, 3, 4, 1]
    brand = Schema.read(make_dataset(tmp_path / "d", users=4, items=9)).feature("brand")
    texts = raw_values(brand, codes, tmp_path / "d")
    assert brand.transform.encode(texts, tmp_path / "d").tolist() == [2, 3, 4, 1]
