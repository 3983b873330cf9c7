"""Small encoders with random weights, written to disk as each library writes them."""

import json

import numpy as np

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "dress", "##es", "coat"]
BERT = {
    "vocab_size": len(WORDS),
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_act": "gelu",
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
}


def write_bert(folder):
    """A BERT of tf-models-official; returns the network."""
    import tensorflow as tf
    import tf_keras
    from official.nlp.modeling import networks

    tf_keras.utils.set_random_seed(3)
    network = networks.BertEncoder(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_layers=2,
        num_attention_heads=2,
        inner_dim=16,
        inner_activation=lambda x: tf_keras.activations.gelu(x, approximate=True),
        max_sequence_length=16,
        type_vocab_size=2,
        dict_outputs=True,
    )
    folder.mkdir()
    (folder / "bert_config.json").write_text(json.dumps(BERT))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tf.train.Checkpoint(encoder=network).write(str(folder / "bert_model.ckpt"))
    return network


def write_preset(folder):
    """A DistilBERT preset of keras-hub; returns the backbone."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(5)
    backbone = keras_hub.models.DistilBertBackbone(
        vocabulary_size=len(WORDS), num_layers=1, num_heads=2, hidden_dim=8, intermediate_dim=16, max_sequence_length=16
    )
    backbone.save_to_preset(str(folder))
    keras_hub.models.DistilBertTokenizer(vocabulary=WORDS, lowercase=True).save_to_preset(str(folder))
    return backbone


def write_saved_model(folder, width=4):
    """Texts to vectors: the number of bytes, of spaces, of letters e, and ones."""
    import tensorflow as tf

    def count(texts, pattern):
        return tf.cast(tf.strings.length(tf.strings.regex_replace(texts, pattern, "")), tf.float32)

    module = tf.Module()
    module.scale = tf.Variable(tf.ones(width))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "texts")])
    def call(texts):
        parts = [count(texts, ""), count(texts, "[^ ]"), count(texts, "[^e]"), tf.ones(tf.shape(texts)[0])]
        return {"vectors": tf.stack(parts[:width], axis=1) * module.scale, "lengths": parts[0]}

    tf.saved_model.save(module, str(folder), signatures=call)


def letters(text):
    """What `write_saved_model` gives, by Python."""
    return [len(text.encode()), text.count(" "), text.count("e"), 1]


def write_keras_model(path):
    """Images of 4 x 6 to the means of their three channels, and the mean of all."""
    import keras

    images = keras.Input((4, 6, 3))
    dense = keras.layers.Dense(4, use_bias=False)
    model = keras.Model(images, dense(keras.layers.GlobalAveragePooling2D()(images)))
    dense.set_weights([np.concatenate([np.eye(3), np.full((3, 1), 1 / 3)], axis=1)])
    model.save(path)


def write_mobilenet(folder, size=32):
    """A MobileNetV2 of tf-models-official, a quarter as wide; returns the backbone."""
    import tensorflow as tf
    import tf_keras
    from official.vision.modeling.backbones import mobilenet

    tf_keras.utils.set_random_seed(7)
    inputs = tf_keras.layers.InputSpec(shape=[None, size, size, 3])
    backbone = mobilenet.MobileNet("MobileNetV2", 0.25, inputs)
    folder.mkdir()
    model = {"input_size": [size, size, 3], "backbone": {"type": "mobilenet", "mobilenet": {"filter_size_scale": 0.25}}}
    (folder / "params.yaml").write_text(json.dumps({"task": {"model": model}}))
    tf.train.Checkpoint(backbone=backbone, step=tf.Variable(3)).save(str(folder / "ckpt"))
    return backbone


def png(array):
    """An image as the bytes of a PNG."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()
