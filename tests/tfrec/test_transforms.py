import math
from itertools import product

import numpy as np

from tfrec.transforms import (
    Bins,
    GroupQuantiles,
    TfidfSvd,
    Vocabulary,
    read_arrays,
    read_values,
    words,
    write_arrays,
    write_values,
)


def test_values_come_back_whatever_characters_they_hold(tmp_path):
    values = ["plain", "tab\there", "line\nbreak", "back\\slash", "\\n", "carriage\rreturn", "ünï \u2028 code", " "]
    write_values(tmp_path / "values.txt", values)
    assert read_values(tmp_path / "values.txt") == values
    assert (tmp_path / "values.txt").read_bytes().count(b"\n") == len(values)


def test_vocabulary_codes_begin_at_two_and_unknown_is_one(tmp_path):
    write_values(tmp_path / "colours.txt", ["red", "blue"])
    vocabulary = Vocabulary(file="colours.txt", size=4)
    assert vocabulary.encode(["blue", None, "", "green", "red"], tmp_path).tolist() == [3, 1, 1, 1, 2]


def test_a_file_written_again_under_its_name_is_read_again(tmp_path):
    vocabulary = Vocabulary(file="colours.txt", size=4)
    for values in (["red", "blue"], ["blue", "red"]):
        write_values(tmp_path / "new.txt", values)
        (tmp_path / "new.txt").rename(tmp_path / "colours.txt")
        assert vocabulary.encode(["red"], tmp_path).tolist() == [2 + values.index("red")]
    for number in (1.0, 2.0):
        write_arrays(tmp_path / "new.npz", {"mean": np.full(3, number, np.float32)})
        (tmp_path / "new.npz").rename(tmp_path / "fitted.npz")
        assert read_arrays(tmp_path / "fitted.npz")["mean"].tolist() == [number] * 3


def test_a_boundary_belongs_to_the_bin_above_it():
    bins = Bins(boundaries=(0.0, 10.0))
    values = [-1.0, 0.0, 9.99, 10.0, 1e9, None, math.nan]
    assert bins.encode(values).tolist() == [2, 3, 3, 4, 4, 1, 1]
    assert bins.encode(np.array(values[:5])).tolist() == [2, 3, 3, 4, 4]
    assert bins.size == 5


def test_group_quantiles_count_edges_group_by_group(tmp_path):
    rng = np.random.default_rng(0)
    groups, dims, quantiles, width = 2, 2, 3, 5
    fitted = {
        "mean": rng.normal(size=width).astype(np.float32),
        "rotation": rng.normal(size=(width, groups * dims)).astype(np.float32),
        "edges": np.sort(rng.normal(size=(groups * dims, quantiles - 1)), axis=1).astype(np.float32),
    }
    write_arrays(tmp_path / "image.npz", fitted)
    transform = GroupQuantiles(
        file="image.npz", groups=groups, dims_per_group=dims, quantiles=quantiles, input_dim=width
    )
    vectors = rng.normal(size=(20, width)).astype(np.float32)
    vectors[3, 2] = np.nan
    codes = transform.encode(vectors, tmp_path)
    for row, group in product(range(20), range(groups)):
        code = 0
        for place in range(dims):
            column = group * dims + place
            value = sum(
                (float(vectors[row, i]) - float(fitted["mean"][i])) * float(fitted["rotation"][i, column])
                for i in range(width)
            )
            code += quantiles**place * sum(value >= edge for edge in fitted["edges"][column])
        assert codes[row, group] == (1 if row == 3 else code + 2)
    assert transform.table_sizes == (11, 11)


def test_tfidf_vectors_have_unit_length_and_texts_without_known_words_have_none(tmp_path):
    write_values(tmp_path / "words.txt", ["red", "shoe"])
    components = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)
    write_arrays(tmp_path / "words.npz", {"idf": np.array([1.0, 2.0], np.float32), "components": components})
    encoder = TfidfSvd(vocabulary="words.txt", file="words.npz", dim=2)
    vectors = encoder.encode(["Red red SHOE!", "hat", None], tmp_path)
    weights = [1 + math.log(2), 2.0]
    expected = [weights[0] + 0.6 * weights[1], 0.8 * weights[1]]
    length = math.hypot(*expected)
    assert np.allclose(vectors[0], [value / length for value in expected], atol=1e-6)
    assert np.isnan(vectors[1:]).all()


def test_words_are_runs_of_two_letters_or_digits():
    assert words("An A-7 über_cool 42!") == ["an", "über", "cool", "42"]
    assert words(None) == []
