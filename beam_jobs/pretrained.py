"""Encoders of texts and images loaded from checkpoints by path: an array of values in, an array of vectors out.

TensorFlow and the packages of the checkpoints are imported where an encoder is loaded: once in each worker.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tfrec.config import EncoderConfig, FeatureConfig, read_yaml
from tfrec.errors import UsageError, UserError
from tfrec.transforms import Pretrained, Vectors

Content: TypeAlias = Literal["text", "image"]
Values: TypeAlias = NDArray[Any]
"""Texts `(N,)` of dtype object, or images `(N, height, width, 3)` uint8."""

_PACKAGES = {
    "tf_models": {"official": "tf-models-official", "tensorflow_text": "tensorflow-text"},
    "keras_hub": {"keras_hub": "keras-hub", "tensorflow_text": "tensorflow-text"},
    "saved_model": {},
    "keras": {},
}
_PARAMETERS = "params.yaml"
_USUAL_SIZE = (224, 224)


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder."""

    call: Callable[[Any], Any]
    """`batch_size` values, as a tensor, to their vectors `(batch_size, d)`."""
    image_size: tuple[int, int] = _USUAL_SIZE
    """Height and width that images are scaled to."""


def check_encoder(feature: FeatureConfig) -> None:
    """Raises a `UsageError` where the encoder's path or packages are missing; nothing is loaded."""
    settings = feature.encoder
    if settings is None:
        return
    for module, package in _PACKAGES[settings.kind].items():
        if importlib.util.find_spec(module) is None:
            raise UsageError(
                f"feature {feature.name}: `encoder.kind: {settings.kind}` needs {package}; "
                "run `pip install 'tfrec[encoders]'`."
            )
    path = Path(settings.path).expanduser()
    if not path.exists() or path.is_dir() != (settings.kind != "keras"):
        what = "a .keras file" if settings.kind == "keras" else "a folder"
        raise UsageError(f"feature {feature.name}: `encoder.path` must be {what}. Received: {settings.path!r}.")


def specification(settings: EncoderConfig) -> Pretrained:
    """What the schema keeps of an encoder: its kind, its options, and a hash of its files."""
    options = settings.model_dump(mode="json", exclude={"kind", "path", "folder", "batch_size"})
    return Pretrained(kind=settings.kind, sha256=_hash(Path(settings.path).expanduser()), options=options)


def _hash(path: Path) -> str:
    """A hash of a file, or of the names and contents of all files of a folder."""
    total = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{file.relative_to(path).as_posix()}\n{content}\n".encode())
    return total.hexdigest()


def load_encoder(feature: FeatureConfig) -> Encoder:
    """Loads the encoder of a feature.

    Raises:
        UserError: one line: the checkpoint is damaged, is another model's, or takes or gives something else.
    """
    settings = feature.encoder
    assert settings is not None, "Called for features with an encoder."
    content: Content = "image" if feature.kind == "image" else "text"
    try:
        return _LOADERS[settings.kind, content](settings)
    except UserError as error:
        raise UserError(f"feature {feature.name}: encoder {settings.path}: {error}") from None
    except Exception as error:  # whatever the libraries say of files that they cannot use
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"feature {feature.name}: encoder {settings.path}: cannot be loaded as `kind: {settings.kind}` of "
            f"{content}s: {reason}"
        ) from None


def encode(encoder: Encoder, values: Values, feature: FeatureConfig) -> Vectors:
    """Vectors `(N, dim)`, in batches of one size, the last filled up; equal values in equal order give equal bits.

    Raises:
        UserError: what the encoder gives is not one vector of width `dim` a value.
    """
    settings = feature.encoder
    assert settings is not None, "Called for features with an encoder."
    size, vectors = settings.batch_size, np.empty((len(values), feature.dim), np.float32)
    for start in range(0, len(values), size):
        part = values[start : start + size]
        filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
        found = np.asarray(encoder.call(_tensor(filled)))
        if found.shape != (size, feature.dim):
            raise UserError(
                f"feature {feature.name}: encoder {settings.path}: gives {size} values the shape {found.shape}, must "
                f"be one vector of width {feature.dim} (the feature's `dim`) each."
            )
        vectors[start : start + size] = found[: len(part)]
    return vectors


def _tensor(values: Values) -> Any:
    import tensorflow as tf

    return tf.constant(values.tolist(), tf.string) if values.dtype == object else tf.constant(values)


def _compiled(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    import tensorflow as tf

    return tf.function(function, autograph=False)


def _tf_models_text(settings: EncoderConfig) -> Encoder:
    """A BERT-like encoder: `bert_config.json` or `params.yaml`, `vocab.txt`, and a checkpoint."""
    import tensorflow as tf
    from official.nlp.configs import encoders
    from official.nlp.modeling import layers

    folder = Path(settings.path).expanduser()
    config = encoders.EncoderConfig()
    config.override(_bert_options(folder))
    options = config.get()
    tokens = len(_file(folder, "vocab.txt").read_text(encoding="utf-8").splitlines())
    if tokens > options.vocab_size:
        raise UserError(f"vocab.txt holds {tokens:,} tokens, the model knows {options.vocab_size:,}.")
    if settings.max_tokens > options.max_position_embeddings:
        raise UserError(
            f"reads {options.max_position_embeddings} tokens at most; lower `encoder.max_tokens` "
            f"({settings.max_tokens})."
        )
    tokenizer = layers.BertTokenizer(vocab_file=str(folder / "vocab.txt"), lower_case=settings.lower_case)
    special = tokenizer.get_special_tokens_dict()
    pack = layers.BertPackInputs(seq_length=settings.max_tokens, special_tokens_dict=special)
    network = encoders.build_encoder(config)
    _restore(tf.train.Checkpoint(encoder=network), folder)

    def call(texts: Any) -> Any:
        inputs = pack([tokenizer(texts)])
        outputs = network(inputs, training=False)
        return _pooled(outputs["sequence_output"], inputs["input_mask"], settings.pooling)

    return Encoder(_compiled(call))


_BERT_NAMES = {
    "num_hidden_layers": "num_layers",
    "hidden_act": "hidden_activation",
    "hidden_dropout_prob": "dropout_rate",
    "attention_probs_dropout_prob": "attention_dropout_rate",
}


def _bert_options(folder: Path) -> dict[str, Any]:
    """The encoder's configuration as tf-models-official takes it."""
    if (folder / _PARAMETERS).is_file():
        return dict(_parameter(folder, "encoder"))
    names = ["vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings"]
    names += ["type_vocab_size", "initializer_range", "embedding_size", *_BERT_NAMES]
    given = json.loads(_file(folder, "bert_config.json").read_text(encoding="utf-8"))
    return {"type": "bert", "bert": {_BERT_NAMES.get(name, name): given[name] for name in names if name in given}}


def _parameter(folder: Path, name: str, default: Any = None) -> Any:
    """`task.model.<name>` of the parameters that a training of tf-models-official saves."""
    found: Any = read_yaml(_file(folder, _PARAMETERS).read_text(encoding="utf-8"))
    for key in ("task", "model", name):
        found = found.get(key) if isinstance(found, Mapping) else None
    if found is None and default is None:
        raise UserError(f"{_PARAMETERS} has no `task.model.{name}`.")
    return default if found is None else found


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise UserError(f"holds no {name}.")
    return folder / name


def _restore(checkpoint: Any, folder: Path) -> None:
    """Reads the newest checkpoint of a folder; every variable of what is restored must be there, of the same shape."""
    import tensorflow as tf

    found = tf.train.latest_checkpoint(str(folder))
    prefixes = sorted(str(path.with_suffix("")) for path in folder.glob("*.index"))
    if found is None and len(prefixes) != 1:
        raise UserError(f"must hold one checkpoint (*.index), holds {len(prefixes)}.")
    try:
        checkpoint.read(found or prefixes[0]).expect_partial().assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint does not match its configuration: {reason}") from None


def _pooled(sequence: Any, mask: Any, pooling: str) -> Any:
    """One vector a text `(B, D)` of one a token `(B, T, D)`."""
    import tensorflow as tf

    if pooling == "first":
        return sequence[:, 0]
    weights = tf.cast(mask, sequence.dtype)[..., None]
    return tf.reduce_sum(sequence * weights, axis=1) / tf.maximum(tf.reduce_sum(weights, axis=1), 1.0)


def _keras_hub_text(settings: EncoderConfig) -> Encoder:
    """A preset of keras-hub: its backbone behind the preprocessing that belongs to it."""
    import keras_hub

    folder = str(Path(settings.path).expanduser())
    backbone = keras_hub.models.Backbone.from_preset(folder)
    preprocess = keras_hub.models.TextClassifierPreprocessor.from_preset(folder, sequence_length=settings.max_tokens)
    tokens, known = preprocess.tokenizer.vocabulary_size(), backbone.vocabulary_size
    if tokens > known:
        raise UserError(f"its tokenizer holds {tokens:,} tokens, its backbone knows {known:,}.")
    network = _compiled(lambda inputs: backbone(inputs, training=False))

    def call(texts: Any) -> Any:
        inputs = preprocess(texts)
        outputs = network(inputs)
        sequence = outputs["sequence_output"] if isinstance(outputs, dict) else outputs
        return _pooled(sequence, inputs["padding_mask"], settings.pooling)

    return Encoder(call)


def _saved_model(settings: EncoderConfig, dtype: str) -> tuple[Callable[[Any], Any], Any]:
    """A signature as a function of its only input, and that input's specification."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(Path(settings.path).expanduser()))
    if settings.signature not in loaded.signatures:
        known = ", ".join(sorted(loaded.signatures))
        raise UserError(f"has no signature {settings.signature} (`encoder.signature`); it has: {known}.")
    signature = loaded.signatures[settings.signature]
    inputs = signature.structured_input_signature[1]
    outputs = signature.structured_outputs
    output = settings.output or (next(iter(outputs)) if len(outputs) == 1 else None)
    if output not in outputs:
        raise UserError(f"`encoder.output` must be one of {', '.join(sorted(outputs))}. Received: {settings.output!r}.")
    name, spec = next(iter(inputs.items()))
    if len(inputs) != 1 or (spec.dtype == tf.string) != (dtype == "string"):
        found = ", ".join(f"{one.name} {one.dtype.name}" for one in inputs.values())
        raise UserError(f"signature {settings.signature} must take one {dtype} input, takes {found}.")

    def call(values: Any) -> Any:
        return loaded.signatures[settings.signature](**{name: values})[output]  # holds on to the variables

    return call, spec


def _saved_model_text(settings: EncoderConfig) -> Encoder:
    return Encoder(_saved_model(settings, "string")[0])


def _saved_model_image(settings: EncoderConfig) -> Encoder:
    call, spec = _saved_model(settings, "float32")
    return Encoder(_scaled(call, settings), _image_size(settings, spec.shape))


def _keras_image(settings: EncoderConfig) -> Encoder:
    """A Keras model of images; nothing in its file is executed (`safe_mode`)."""
    import keras

    model = keras.saving.load_model(Path(settings.path).expanduser(), compile=False, safe_mode=True)
    call = _compiled(_scaled(lambda images: _without_places(model(images, training=False)), settings))
    return Encoder(call, _image_size(settings, model.input_shape))


def _tf_models_image(settings: EncoderConfig) -> Encoder:
    """The backbone of an image model of tf-models-official, `params.yaml` and a checkpoint, of normalised images."""
    import tensorflow as tf
    import tf_keras
    from official.vision.configs import backbones, common
    from official.vision.modeling.backbones import factory
    from official.vision.ops import preprocess_ops

    folder = Path(settings.path).expanduser()
    size = settings.image_size or _size(_parameter(folder, "input_size", _USUAL_SIZE))
    options, norm = backbones.Backbone(), common.NormActivation()
    options.override(dict(_parameter(folder, "backbone")))
    norm.override(dict(_parameter(folder, "norm_activation", {"use_sync_bn": False})))
    backbone = factory.build_backbone(tf_keras.layers.InputSpec(shape=[None, *size, 3]), options, norm)
    _restore(tf.train.Checkpoint(backbone=backbone), folder)

    def call(images: Any) -> Any:
        normal = (tf.cast(images, tf.float32) - preprocess_ops.MEAN_RGB) / preprocess_ops.STDDEV_RGB
        levels = backbone(normal, training=False)
        return _without_places(levels[max((level for level in levels if level.isdigit()), key=int)])

    return Encoder(_compiled(call), size)


def _scaled(call: Callable[[Any], Any], settings: EncoderConfig) -> Callable[[Any], Any]:
    """`call` of images whose 0..255 are mapped to `pixel_range`."""
    import tensorflow as tf

    low, high = settings.pixel_range
    return lambda images: call(tf.cast(images, tf.float32) * ((high - low) / 255) + low)


def _image_size(settings: EncoderConfig, shape: Any) -> tuple[int, int]:
    """Height and width: the model's own, else `image_size`."""
    own = tuple(shape)[1:3]
    if None in own:
        return settings.image_size or _USUAL_SIZE
    if settings.image_size not in (None, own):
        raise UserError(f"reads images of {own[0]} x {own[1]}; `encoder.image_size` says {settings.image_size}.")
    return _size(own)


def _size(sizes: Sequence[int]) -> tuple[int, int]:
    height, width = sizes[:2]
    return height, width


def _without_places(features: Any) -> Any:
    """Vectors `(B, D)` as they are, of features at places `(B, ..., D)` the mean over places."""
    import tensorflow as tf

    axes = list(range(1, len(features.shape) - 1))
    return tf.reduce_mean(features, axis=axes) if axes else features


_LOADERS: Mapping[tuple[str, Content], Callable[[EncoderConfig], Encoder]] = {
    ("tf_models", "text"): _tf_models_text,
    ("keras_hub", "text"): _keras_hub_text,
    ("saved_model", "text"): _saved_model_text,
    ("keras", "image"): _keras_image,
    ("tf_models", "image"): _tf_models_image,
    ("saved_model", "image"): _saved_model_image,
}
