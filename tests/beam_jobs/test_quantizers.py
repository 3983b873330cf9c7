import numpy as np
import pytest

from beam_jobs.quantizers import fit_group_quantiles, quality
from tfrec.config import FeatureConfig
from tfrec.errors import UserError
from tfrec.transforms import GroupQuantiles, write_arrays


def make_feature(**options):
    return FeatureConfig(name="image", kind="multimodal", **{"dim": 4, "groups": 2, "quantiles": 4, **options})


def make_transform(feature, width):
    return GroupQuantiles(
        file="image.npz",
        groups=feature.groups,
        dims_per_group=feature.dims_per_group,
        quantiles=feature.quantiles,
        input_dim=width,
    )


def make_vectors(rows=400, seed=0):
    scales = np.array([8.0, 4.0, 2.0, 1.0, 0.1, 0.1])
    turn, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(6, 6)))
    return ((np.random.default_rng(seed).normal(size=(rows, 6)) * scales) @ turn).astype(np.float32)


def encode(vectors, feature, tmp_path):
    fitted = fit_group_quantiles(vectors, feature)
    write_arrays(tmp_path / "image.npz", fitted)
    transform = make_transform(feature, vectors.shape[1])
    return fitted, transform, transform.encode(vectors, tmp_path)


def test_components_are_dealt_so_that_groups_carry_similar_energy():
    vectors = make_vectors(5000)
    rotation = fit_group_quantiles(vectors, make_feature())["rotation"]
    deviations = ((vectors - vectors.mean(0)) @ rotation).std(0)
    np.testing.assert_allclose(deviations, [8, 1, 4, 2], rtol=0.1)


def test_rotation_is_orthonormal_with_fixed_signs():
    rotation = fit_group_quantiles(make_vectors(), make_feature())["rotation"]
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
    with_gaps = np.insert(vectors, [0, 30], np.nan, axis=0)
    fitted, transform, codes = encode(with_gaps, make_feature(), tmp_path)
    for name, array in fit_group_quantiles(vectors, make_feature()).items():
        np.testing.assert_array_equal(fitted[name], array)
    assert (codes[[0, 31]] == 1).all()
    assert quality(codes, with_gaps, transform, fitted)["coded"] == 60


def test_quality_of_nothing_coded_is_empty():
    feature = make_feature()
    report = quality(np.ones((3, 2), np.int32), make_vectors(3), make_transform(feature, 6), {})
    assert report["coded"] == 0
    assert report["dead_codes"] == [16, 16]


def test_no_vectors_at_all_is_one_clear_line():
    with pytest.raises(UserError, match="feature `image`: no item has a vector"):
        fit_group_quantiles(np.full((3, 4), np.nan, np.float32), make_feature())


def test_vectors_narrower_than_the_groups_are_refused():
    with pytest.raises(UserError, match=r"at most the width of the vectors. Received: 2 \* 2, width 3"):
        fit_group_quantiles(np.ones((5, 3), np.float32), make_feature())
