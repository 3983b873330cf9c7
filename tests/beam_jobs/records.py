"""TFRecords read back by TensorFlow."""

import tensorflow as tf


def read_examples(directory, folder):
    """The Examples of a folder of TFRecords as dictionaries of lists."""
    paths = sorted(str(path) for path in (directory / folder).glob("*.tfrecord"))
    examples = []
    for record in tf.data.TFRecordDataset(paths).as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        examples.append(
            {name: list(getattr(feature, feature.WhichOneof("kind")).value) for name, feature in features.items()}
        )
    return examples
