import math

import numpy as np
import pytest

from beam_jobs.quantizers import fit_quantizer, quality
from tfrec.config import FeatureConfig
from tfrec.errors import UserError
from tfrec.transforms import GroupQuantiles, write_arrays


def make_feature(**options):
    usual = {"quantile": {"groups": 2, "quantiles": 4}, "product": {"groups": 2}, "residual": {}}
    usual = {"dim": 4, **usual[options.get("quantizer", "quantile")], **options}
    return FeatureConfig(name="image", kind="multimodal", **usual)


def make_vectors(rows=400, seed=0):
    scales = np.array([8.0, 4.0, 2.0, 1.0, 0.1, 0.1])
    turn, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(6, 6)))
    return ((np.random.default_rng(seed).normal(size=(rows, 6)) * scales) @ turn).astype(np.float32)


def encode(vectors, feature, tmp_path):
    transform, fitted = fit_quantizer(vectors, feature)
    write_arrays(tmp_path / transform.file, fitted)
    return fitted, transform, transform.encode(vectors, tmp_path)


def test_components_are_dealt_so_that_groups_carry_similar_energy():
    vectors = make_vectors(5000)
    rotation = fit_quantizer(vectors, make_feature())[1]["rotation"]
    deviations = ((vectors - vectors.mean(0)) @ rotation).std(0)
    np.testing.assert_allclose(deviations, [8, 1, 4, 2], rtol=0.1)


def test_rotation_is_orthonormal_with_fixed_signs():
    rotation = fit_quantizer(make_vectors(), make_feature())[1]["rotation"]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(4), atol=1e-6)
    assert (rotation[np.abs(rotation).argmax(0), range(4)] > 0).all()


def test_codes_equal_a_loop_over_values_and_edges(tmp_path):
    vectors = make_vectors(50)
    fitted, _, codes = encode(vectors, make_feature(), tmp_path)
    for row, vector in enumerate(vectors):
        rotated = [
            sum((float(v) - float(m)) * float(r) for v, m, r in zip(vector, fitted["mean"], column, strict=True))
            for column in fitted["rotation"].T
        ]
        bins = [sum(value >= edge for edge in edges) for value, edges in zip(rotated, fitted["edges"], strict=True)]
        assert codes[row].tolist() == [2 + bins[0] + 4 * bins[1], 2 + bins[2] + 4 * bins[3]]


def test_bins_of_continuous_values_are_equally_full(tmp_path):
    _, _, codes = encode(make_vectors(4000), make_feature(dims_per_group=1), tmp_path)
    for column in codes.T:
        np.testing.assert_allclose(np.bincount(column - 2) / 4000, 0.25, atol=1e-3)


def test_a_row_has_the_same_codes_alone_and_in_a_batch(tmp_path):
    vectors = make_vectors(300)
    _, transform, codes = encode(vectors, make_feature(), tmp_path)
    alone = np.concatenate([transform.encode(vectors[i : i + 1], tmp_path) for i in range(300)])
    np.testing.assert_array_equal(alone, codes)


def test_mass_points_stay_apart_and_leave_dead_codes(tmp_path):
    vectors = np.zeros((100, 2), np.float32)
    vectors[:5, 0] = 1.0
    feature = make_feature(dim=2, groups=2, dims_per_group=1, quantiles=8)
    fitted, transform, codes = encode(vectors, feature, tmp_path)
    assert (np.diff(fitted["edges"], axis=1) >= 0).all()
    assert len(set(codes[:5, 0]) | set(codes[5:, 0])) == 2
    assert set(codes[:5, 0]).isdisjoint(codes[5:, 0])
    report = quality(codes, vectors, transform, fitted)
    assert report["dead_codes"] == [6, 7]
    assert report["collisions"] == 100
    assert report["distortion"] == pytest.approx(0, abs=1e-6)


def test_quality_by_hand(tmp_path):
    vectors = np.array([[-3.0, 0], [-1, 0], [1, 0], [3, 0]], np.float32)
    feature = make_feature(dim=2, groups=1, dims_per_group=1, quantiles=2)
    fitted, transform, codes = encode(vectors, feature, tmp_path)
    report = quality(codes, vectors, transform, fitted)
    assert codes.ravel().tolist() == [2, 2, 3, 3]
    assert report["distortion"] == pytest.approx(4 / 20)  # each value is 1 from its code's mean
    assert report["perplexity"] == [pytest.approx(2)]
    assert report["collisions"] == 4


def test_missing_vectors_are_left_out(tmp_path):
    vectors = make_vectors(60)
    with_gaps = np.insert(vectors, [0, 30], [[np.nan], [np.inf]], axis=0)
    fitted, transform, codes = encode(with_gaps, make_feature(), tmp_path)
    for name, array in fit_quantizer(vectors, make_feature())[1].items():
        np.testing.assert_array_equal(fitted[name], array)
    assert (codes[[0, 31]] == 1).all()
    assert quality(codes, with_gaps, transform, fitted)["coded"] == 60


def test_quality_of_nothing_coded_is_empty():
    transform = GroupQuantiles(file="image.npz", groups=2, dims_per_group=2, quantiles=4, input_dim=6)
    report = quality(np.ones((3, 2), np.int32), make_vectors(3), transform, {})
    assert report["coded"] == 0
    assert report["dead_codes"] == [16, 16]


def test_product_codes_name_the_nearest_mean_of_each_group(tmp_path):
    feature = make_feature(quantizer="product", codes=7, groups=2, dims_per_group=2)
    vectors = make_vectors(200)
    fitted, transform, codes = encode(vectors, feature, tmp_path)
    assert transform.table_sizes == (9, 9)
    rotated = (vectors.astype(float) - fitted["mean"]) @ fitted["rotation"].astype(float)
    for row, values in enumerate(rotated):
        for group in range(2):
            distances = [math.dist(values[2 * group : 2 * group + 2], mean) for mean in fitted["centroids"][group]]
            assert codes[row, group] == 2 + distances.index(min(distances))


def test_residual_codes_name_the_nearest_mean_of_what_is_left_over(tmp_path):
    feature = make_feature(quantizer="residual", codes=5, levels=3)
    vectors = make_vectors(200)
    fitted, transform, codes = encode(vectors, feature, tmp_path)
    assert (transform.table_sizes, transform.combiner) == ((7, 7, 7), "sum")
    errors = np.zeros(3)
    for row, vector in enumerate(vectors):
        rest = vector.astype(float) - fitted["mean"]
        for level in range(3):
            distances = [math.dist(rest, mean) for mean in fitted["centroids"][level]]
            assert codes[row, level] == 2 + distances.index(min(distances))
            rest = rest - fitted["centroids"][level][codes[row, level] - 2]
            errors[level] += (rest**2).sum()
    shares = errors / ((vectors - fitted["mean"].astype(float)) ** 2).sum()
    assert shares[2] < shares[1] < shares[0] < 0.5
    assert quality(codes, vectors, transform, fitted)["distortion"] == pytest.approx(shares[2])


@pytest.mark.parametrize("options", [{"quantizer": "product", "codes": 3}, {"quantizer": "residual", "codes": 3}])
def test_means_are_those_of_separate_clusters(tmp_path, options):
    clusters = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 30.0]])
    points = np.repeat(clusters, 50, axis=0) + np.random.default_rng(0).normal(size=(150, 2), scale=0.1)
    options |= {"groups": 1, "dims_per_group": 2} if options["quantizer"] == "product" else {"levels": 1}
    fitted, transform, codes = encode(points.astype(np.float32), make_feature(dim=2, **options), tmp_path)
    labels = codes.reshape(3, 50)
    assert (labels == labels[:, :1]).all()
    assert len(set(labels[:, 0])) == 3
    report = quality(codes, points.astype(np.float32), transform, fitted)
    assert report["perplexity"] == [pytest.approx(3)]
    within = sum(((cluster - cluster.mean(0)) ** 2).sum() for cluster in np.split(points, 3))
    assert report["distortion"] == pytest.approx(within / ((points - points.mean(0)) ** 2).sum(), rel=1e-3)
    assert report["collisions"] == 150


@pytest.mark.parametrize("quantizer", ["product", "residual"])
def test_fewer_vectors_than_codes_keep_each_its_own_and_leave_dead_codes(tmp_path, quantizer):
    vectors = np.repeat(make_vectors(5), 2, axis=0)
    options = {"dims_per_group": 6, "groups": 1} if quantizer == "product" else {"levels": 2}
    fitted, transform, codes = encode(vectors, make_feature(dim=6, quantizer=quantizer, codes=8, **options), tmp_path)
    assert np.isnan(fitted["centroids"][0][5:]).all()
    assert len(np.unique(codes, axis=0)) == 5
    report = quality(codes, vectors, transform, fitted)
    assert report["dead_codes"] == ([3] if quantizer == "product" else [3, 7])
    assert (report["collisions"], report["distortion"]) == (10, pytest.approx(0, abs=1e-6))


@pytest.mark.parametrize("quantizer", ["quantile", "product", "residual"])
def test_equal_vectors_give_equal_bytes(quantizer):
    codes = {} if quantizer == "quantile" else {"codes": 16}
    fits = [fit_quantizer(make_vectors(500), make_feature(quantizer=quantizer, **codes))[1] for _ in range(2)]
    assert {name: array.tobytes() for name, array in fits[0].items()} == {
        name: array.tobytes() for name, array in fits[1].items()
    }


@pytest.mark.parametrize(
    ("quantizer", "option", "value"),
    [
        ("product", "groups", 1),
        ("product", "dims_per_group", 1),
        ("product", "codes", 5),
        ("residual", "codes", 5),
        ("residual", "levels", 2),
    ],
)
def test_every_option_changes_the_codes(tmp_path, quantizer, option, value):
    plain = {"quantizer": quantizer, "codes": 4}
    codes = [encode(make_vectors(), make_feature(**each), tmp_path)[2] for each in (plain, {**plain, option: value})]
    assert codes[0].shape != codes[1].shape or (codes[0] != codes[1]).any()


def test_no_vectors_at_all_is_one_clear_line():
    with pytest.raises(UserError, match="feature `image`: no item has a vector"):
        fit_quantizer(np.full((3, 4), np.nan, np.float32), make_feature())


def test_vectors_narrower_than_the_groups_are_refused():
    with pytest.raises(UserError, match=r"at most the width of the vectors. Received: 2 \* 2, width 3"):
        fit_quantizer(np.ones((5, 3), np.float32), make_feature())
