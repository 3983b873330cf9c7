import json

import numpy as np
import pytest
import tensorflow as tf

from beam_jobs.pretrained import check_encoder, encode, load_encoder, specification
from tests.beam_jobs.checkpoints import (
    WORDS,
    letters,
    write_bert,
    write_keras_model,
    write_mobilenet,
    write_preset,
    write_saved_model,
)
from tfrec.config import FeatureConfig
from tfrec.errors import UsageError, UserError

TEXTS = ["Red dresses", "blue coat", "no known wórd", "red"]
TOKENS = [[2, 5, 7, 8, 3], [2, 6, 9, 3], [2, 1, 1, 1, 3], [2, 5, 3]]  # [CLS], words of WORDS, [SEP]


def feature(kind, path, content="text", dim=8, **options):
    return FeatureConfig.model_validate(
        {
            "name": "title",
            "kind": content,
            "dim": dim,
            "groups": 2,
            "dims_per_group": 1,
            "encoder": {"kind": kind, "path": str(path), "batch_size": 3, **options},
        }
    )


def vectors_of(settings, values=TEXTS):
    dtype = object if isinstance(values[0], str) else np.uint8
    return encode(load_encoder(settings), np.array(values, dtype), settings)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "bert"
    return folder, write_bert(folder)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_bert_of_tf_models_gives_what_its_network_gives_for_tokens_by_hand(bert, pooling):
    folder, network = bert
    found = vectors_of(feature("tf_models", folder, pooling=pooling, max_tokens=6))
    for vector, tokens in zip(found, TOKENS, strict=True):
        ids = np.array([tokens])
        inputs = {"input_word_ids": ids, "input_mask": np.ones_like(ids), "input_type_ids": np.zeros_like(ids)}
        states = network(inputs)["sequence_output"].numpy()[0]
        np.testing.assert_allclose(vector, states.mean(axis=0) if pooling == "mean" else states[0], atol=2e-6)


def test_a_preset_of_keras_hub_gives_what_its_backbone_gives_for_tokens_by_hand(tmp_path):
    backbone = write_preset(tmp_path / "preset")
    found = vectors_of(feature("keras_hub", tmp_path / "preset", max_tokens=6), TEXTS[:2] + TEXTS[3:])
    for vector, tokens in zip(found, [*TOKENS[:2], TOKENS[3]], strict=True):
        ids = np.array([tokens])
        states = backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)}).numpy()[0]
        np.testing.assert_allclose(vector, states.mean(axis=0), atol=2e-6)


def test_a_saved_model_is_called_by_its_signature(tmp_path):
    write_saved_model(tmp_path / "saved")
    found = vectors_of(feature("saved_model", tmp_path / "saved", dim=4, output="vectors"))
    assert found.tolist() == [letters(text) for text in TEXTS]


def test_a_keras_model_of_images_sees_the_range_of_pixels_that_is_asked_for(tmp_path):
    write_keras_model(tmp_path / "means.keras")
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3))
    settings = feature("keras", tmp_path / "means.keras", "image", dim=4, pixel_range=[-1, 1])
    assert load_encoder(settings).image_size == (4, 6)
    means = images.mean(axis=(1, 2)) / 127.5 - 1
    np.testing.assert_allclose(vectors_of(settings, images), np.column_stack([means, means.mean(axis=1)]), atol=1e-5)


def test_a_backbone_of_tf_models_sees_images_normalised_as_it_was_trained(tmp_path):
    backbone = write_mobilenet(tmp_path / "mobilenet")
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3))
    settings = feature("tf_models", tmp_path / "mobilenet", "image", dim=1280)
    assert load_encoder(settings).image_size == (32, 32)
    normal = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]  # ImageNet's means and deviations
    expected = backbone(normal.astype(np.float32), training=False)["6"].numpy().mean(axis=(1, 2))
    np.testing.assert_allclose(vectors_of(settings, images), expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_that_is_not_of_the_configuration_is_one_line(bert, tmp_path):
    write_bert(tmp_path / "bert")
    path = tmp_path / "bert" / "bert_config.json"
    given = json.loads(path.read_text())
    path.write_text(json.dumps(given | {"hidden_size": 12}))
    with pytest.raises(
        UserError, match=r"feature title: encoder .*bert: the checkpoint does not match its config"
    ) as one:
        load_encoder(feature("tf_models", tmp_path / "bert", max_tokens=6))
    assert "\n" not in str(one.value)
    path.write_text(json.dumps(given | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"the checkpoint does not match its configuration"):
        load_encoder(feature("tf_models", tmp_path / "bert", max_tokens=6))
    path.write_text(json.dumps(given | {"vocab_size": 4}))
    with pytest.raises(UserError, match=f"vocab.txt holds {len(WORDS)} tokens, the model knows 4"):
        load_encoder(feature("tf_models", tmp_path / "bert", max_tokens=6))
    with pytest.raises(UserError, match=r"reads 16 tokens at most; lower `encoder.max_tokens` \(17\)"):
        load_encoder(feature("tf_models", bert[0], max_tokens=17))


def test_a_width_that_is_not_dim_is_one_line(bert):
    with pytest.raises(UserError, match=r"gives 3 values the shape \(3, 8\), must be one vector of width 6"):
        vectors_of(feature("tf_models", bert[0], dim=6, max_tokens=6))


def test_what_a_saved_model_does_not_take_is_one_line(tmp_path):
    write_saved_model(tmp_path / "saved")
    with pytest.raises(UserError, match=r"has no signature rank .*it has: serving_default"):
        load_encoder(feature("saved_model", tmp_path / "saved", signature="rank"))
    with pytest.raises(UserError, match=r"`encoder.output` must be one of lengths, vectors. Received: None"):
        load_encoder(feature("saved_model", tmp_path / "saved"))
    with pytest.raises(UserError, match=r"must take one float32 input, takes texts string"):
        load_encoder(feature("saved_model", tmp_path / "saved", "image", output="vectors"))


def test_a_keras_file_that_would_execute_code_is_refused(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((4, 6, 3)), keras.layers.Lambda(lambda x: x * 2)])
    model.save(tmp_path / "code.keras")
    with pytest.raises(UserError, match=r"cannot be loaded as `kind: keras` of images: .*safe_mode"):
        load_encoder(feature("keras", tmp_path / "code.keras", "image"))


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    write_saved_model(tmp_path / "saved")
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"encoder .*saved: cannot be loaded as `kind: saved_model` of texts: "):
        load_encoder(feature("saved_model", tmp_path / "saved"))
    tf.io.gfile.makedirs(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"holds no bert_config.json"):
        load_encoder(feature("tf_models", tmp_path / "empty"))


def test_a_missing_path_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match=r"feature title: `encoder.path` must be a folder. Received: "):
        check_encoder(feature("saved_model", tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"must be a .keras file"):
        check_encoder(feature("keras", tmp_path, "image"))


def test_the_specification_says_which_checkpoint_it_was_wherever_it_lies(tmp_path):
    for name, content in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    first, same, other = (specification(feature("saved_model", tmp_path / name).encoder) for name in "abc")
    assert first == same
    assert first != other
    assert str(tmp_path) not in first.model_dump_json()
