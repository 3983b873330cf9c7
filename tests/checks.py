"""Batteries: what every layer and every model must hold, whatever it computes."""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfrec.models.shells import is_event

Arrays = Mapping[str, np.ndarray]


def check_layer(
    make: Callable[..., keras.layers.Layer],
    inputs: Arrays,
    expected_shape: Any,
    tmp_path: Path,
    *,
    batch_first: bool = True,
    weights_without_gradient: tuple[str, ...] = (),
    float32_output: bool = False,
) -> keras.layers.Layer:
    """Builds in `build`, has the shape, survives its config and a `.keras` file, mixed precision, gradients, order.

    Args:
        make: called with layer keywords (`dtype=`), makes the layer.
        inputs: arrays by argument name of `call`.
        expected_shape: shape of the output, or a dict of shapes.
        tmp_path: for the file.
        batch_first: whether the output's first axis is the inputs'.
        weights_without_gradient: ends of the paths of weights that these inputs do not reach.
        float32_output: whether the output is in float32 whatever the precision.
    """
    layer = make()
    build_by_shape(layer, inputs)
    weights = len(layer.weights)
    output = run(layer, inputs)
    assert len(layer.weights) == weights, "Weights were made by the call, not by build."
    shapes = {key: value.shape for key, value in output.items()} if isinstance(output, dict) else output.shape
    assert shapes == expected_shape
    assert all(np.isfinite(value).all() for value in tree.flatten(output))

    _check_config(layer, inputs, output)
    _check_file(layer, inputs, output, tmp_path)
    _check_mixed_precision(make, layer, inputs, output, "float32" if float32_output else "bfloat16")
    _check_gradients(layer, inputs, weights_without_gradient)
    if batch_first:
        _check_order(layer, inputs, output)
    return layer


def build_by_shape(layer: keras.layers.Layer, inputs: Arrays) -> None:
    """Calls `build` with the shapes that it names."""
    names = inspect.signature(type(layer).build).parameters
    layer.build(**{f"{name}_shape": value.shape for name, value in inputs.items() if f"{name}_shape" in names})


def run(layer: Any, inputs: Arrays, **kwargs: Any) -> Any:
    """Calls a layer on arrays; arrays come back, in float32 where the layer computes in bfloat16."""
    return tree.map_structure(to_numpy, layer(**inputs, **kwargs))


def to_numpy(value: Any) -> np.ndarray:
    floating = keras.backend.standardize_dtype(value.dtype) in ("bfloat16", "float16")
    return ops.convert_to_numpy(ops.cast(value, "float32") if floating else value)


def compiled(model: Any, training: bool = False) -> Callable[..., Any]:
    """A model as a function of a batch (and of another model with weights like its own) that gives arrays.

    JAX compiles it once for each shape of batches, where it would compile every operation that is called by itself.
    """
    if keras.backend.backend() != "jax":
        return lambda batch, other=model: tree.map_structure(to_numpy, other(batch, training=training))
    import jax

    @jax.jit
    def forward(values: list[Any], batch: Any) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(model.weights, values, strict=True))):
            return model(batch, training=training)

    def run_with(batch: Arrays, other: Any = model) -> Any:
        return tree.map_structure(to_numpy, forward([weight.value for weight in other.weights], dict(batch)))

    return run_with


def randomise(layer: Any, seed: int = 0, scale: float = 0.3) -> None:
    """Gives every trainable weight random values, so that zeros and ones hide nothing."""
    rng = np.random.default_rng(seed)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(0, scale, weight.shape).astype("float32"))


def seed_weights(seed: int) -> None:
    """From here on, fresh weights and dropout are the same.

    `keras.utils.set_random_seed` does this too, but TensorFlow then forgets its kernels and prepares each operation
    anew: a fifth of the time of tests that make many models.
    """
    random.seed(seed)


def gradients(layer: Any, loss: Callable[[], Any]) -> dict[str, np.ndarray | None]:
    """Gradients of a loss by the path of each trainable weight, on whichever backend; None where there is none."""
    weights = layer.trainable_weights
    if keras.backend.backend() == "jax":
        import jax

        def of_values(values: list[Any]) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
                return loss()

        found = jax.jit(jax.grad(of_values))([weight.value for weight in weights])
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss()
        found = [
            None if each is None else tf.convert_to_tensor(each)
            for each in tape.gradient(value, [weight.value for weight in weights])
        ]
    pairs = zip(weights, found, strict=True)
    return {weight.path: None if each is None else np.asarray(each) for weight, each in pairs}


def sum_of_squares(output: Any) -> Any:
    """A loss that every output enters, with other weights at other places."""
    total = 0.0
    for value in tree.flatten(output):
        value = ops.cast(value, "float32")
        size = int(np.prod(value.shape))
        total = total + ops.sum(ops.reshape(value, (-1,)) * np.linspace(0.5, 1.5, size, dtype="float32"))
    return total


def _check_config(layer: Any, inputs: Arrays, output: Any) -> None:
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    build_by_shape(copy, inputs)
    copy.set_weights(layer.get_weights())
    _assert_close(run(copy, inputs), output, 1e-6)


def _check_file(layer: Any, inputs: Arrays, output: Any, tmp_path: Path) -> None:
    fresh = type(layer).from_config(layer.get_config())
    symbolic = {
        name: keras.Input(value.shape[1:], dtype=keras.backend.standardize_dtype(value.dtype), name=name)
        for name, value in inputs.items()
    }
    model = keras.Model(symbolic, fresh(**symbolic))
    fresh.set_weights(layer.get_weights())
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras", custom_objects={type(layer).__name__: type(layer)})
    _assert_close(tree.map_structure(to_numpy, loaded(dict(inputs))), output, 1e-6)


def _check_mixed_precision(
    make: Callable[..., Any], layer: Any, inputs: Arrays, output: Any, output_dtype: str
) -> None:
    mixed = make(dtype="mixed_bfloat16")
    build_by_shape(mixed, inputs)
    mixed.set_weights(layer.get_weights())
    raw = mixed(**inputs)
    assert {keras.backend.standardize_dtype(value.dtype) for value in tree.flatten(raw)} <= {output_dtype, "int32"}
    assert all(keras.backend.standardize_dtype(weight.dtype) != "bfloat16" for weight in mixed.weights)
    scale = max(float(np.abs(value).max()) for value in tree.flatten(output))
    _assert_close(tree.map_structure(to_numpy, raw), output, 0.1 * max(scale, 1e-3))  # 8 bits of mantissa, some layers


def _check_gradients(layer: Any, inputs: Arrays, without: tuple[str, ...]) -> None:
    found = gradients(layer, lambda: sum_of_squares(layer(**inputs)))
    for path, gradient in found.items():
        if path.endswith(without) if without else False:
            continue
        assert gradient is not None, f"No gradient reaches {path}."
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, f"The gradient of {path} is 0."


def _check_order(layer: Any, inputs: Arrays, output: Any) -> None:
    order = np.arange(len(next(iter(inputs.values()))))[::-1]
    permuted = run(layer, {name: value[order] for name, value in inputs.items()})
    _assert_close(permuted, tree.map_structure(lambda value: value[order], output), 1e-5)


def _assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    tree.map_structure(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=tolerance), actual, expected)


def check_model(
    model: Any, batches: list[dict[str, np.ndarray]], *, parameters: int, tmp_path: Path, rebuild: Callable[[], Any]
) -> None:
    """Has the parameters, learns 64 fixed rows by compiled steps, and comes back from its weights.

    Args:
        model: a `RetrievalModel` with its catalogue set.
        batches: training batches of different lengths, not prepared.
        parameters: trainable parameters by written arithmetic.
        tmp_path: for the weights.
        rebuild: makes the same model afresh, catalogue set.
    """
    assert count_parameters(model) == parameters
    history = learn(model, batches)
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert set(history) == {"loss", *model.objective.metric_names}

    again = reloaded(model, rebuild, tmp_path)
    query = {
        key: value[:, :-1] if value.ndim > 1 and key[:5] != "user_" else value for key, value in batches[0].items()
    }
    query["request_time"] = query["time"].max(axis=1) if "time" in query else np.zeros(len(query["item"]), np.int32)
    np.testing.assert_allclose(to_numpy(again.encode_users(query)), to_numpy(model.encode_users(query)), atol=1e-6)
    _assert_same_items(again, model)


def check_ranking_model(
    model: Any,
    batches: list[dict[str, np.ndarray]],
    *,
    parameters: int,
    tmp_path: Path,
    rebuild: Callable[[], Any],
    alone: bool = True,
) -> None:
    """Has the parameters, learns fixed rows, comes back from its weights, and sees nothing that it may not see.

    Logits depend on no outcome, outside training on no position, and on no event at or behind the candidate's place;
    nor on padding, nor on the row's other candidates.

    Args:
        model: a `RankingModel` with its catalogue set.
        batches: batches of different sizes; where the model is causal, some with candidates at different places.
        parameters: trainable parameters by written arithmetic.
        tmp_path: for the weights.
        rebuild: makes the same model afresh, catalogue set.
        alone: whether candidates do not see each other.
    """
    assert count_parameters(model) == parameters
    history = learn(model, batches)
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    assert set(history) == {"loss", *model.objective.metric_names, *getattr(model.scorer, "metric_names", ())}

    again, logits_of = reloaded(model, rebuild, tmp_path), compiled(model)
    for batch in batches:
        logits = logits_of(batch)
        assert {label: value.shape for label, value in logits.items()} == dict.fromkeys(
            model.labels, batch["candidate"].shape
        )
        real = batch["candidate_weight"] > 0
        _assert_same_logits(logits_of(batch, again), logits, real)
        _assert_same_logits(logits_of(_with_other_outcomes(batch)), logits, real)
        if alone:
            for place in range(real.shape[1]):
                here = np.arange(real.shape[1]) == place
                _assert_same_logits(logits_of(_without_others(batch, here)), logits, real & here)
        padded = logits_of(_padded(batch, model.history_length))
        _assert_same_logits({label: value[:, :-2] for label, value in padded.items()}, logits, real)
    _assert_same_items(again, model)


def count_parameters(model: Any) -> int:
    """The number of trainable parameters."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def learn(model: Any, batches: list[dict[str, np.ndarray]]) -> dict[str, list[float]]:
    """Fits a model to the same few batches by compiled steps; returns the history of its metrics."""
    rng = np.random.default_rng(0)
    prepared = [model.objective.prepare(batch, rng) for batch in batches]

    def forever() -> Iterator[tuple[dict[str, np.ndarray]]]:
        while True:
            for batch in prepared:
                yield (batch,)

    model.compile(optimizer=keras.optimizers.Adam(3e-3), jit_compile=keras.backend.backend() == "jax")
    model.optimizer.build(model.trainable_variables)  # else TensorFlow traces a step twice
    fitted = model.fit(forever(), steps_per_epoch=len(prepared), epochs=15, verbose=0, shuffle=False)
    return fitted.history


def reloaded(model: Any, rebuild: Callable[[], Any], tmp_path: Path) -> Any:
    """The same model, made afresh and given the weights by a file."""
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    again = rebuild()
    again.load_weights(path)
    return again


def _assert_same_items(again: Any, model: Any) -> None:
    items = np.arange(2, model.item_table.num_items, dtype=np.int32)
    np.testing.assert_allclose(to_numpy(again.encode_items(items)), to_numpy(model.encode_items(items)), atol=1e-6)


def _assert_same_logits(actual: Any, expected: Arrays, real: np.ndarray) -> None:
    for label, logits in expected.items():
        np.testing.assert_allclose(to_numpy(actual[label])[real], logits[real], rtol=0, atol=1e-5, err_msg=label)


def _with_other_outcomes(batch: Arrays) -> dict[str, np.ndarray]:
    """Other labels, weights and positions, and other events where no candidate of the row may look."""
    outcomes = ("candidate_label_", "candidate_weight", "candidate_position")
    changed = {key: value + 3 if key.startswith(outcomes) else value for key, value in batch.items()}
    seen = np.arange(batch["item"].shape[1]) < batch["candidate_history"].max(axis=1)[:, None]
    for key in ("item", "event_type", "time"):
        if key in batch:
            changed[key] = np.where(seen | (batch["item"] == 0), batch[key], batch[key] // 2 + 2)
    return changed


def _without_others(batch: Arrays, here: np.ndarray) -> dict[str, np.ndarray]:
    """Each row with one candidate, where `here` is true, and without the events behind it; of the same shape."""
    seen = np.arange(batch["item"].shape[1]) < batch["candidate_history"][:, here]
    changed = dict(batch)
    for key, value in batch.items():
        if is_event(key) or key.startswith("candidate"):
            mask = seen if is_event(key) else here[None]
            changed[key] = value * mask.reshape(mask.shape + (1,) * (value.ndim - 2)).astype(value.dtype)
    return changed


def _padded(batch: Arrays, history_length: int) -> dict[str, np.ndarray]:
    """Two more empty candidates, and as many empty places behind the events where the model takes them."""
    places = min(2, history_length - batch["item"].shape[1])
    added = {key: places for key in batch if is_event(key)} | {key: 2 for key in batch if key.startswith("candidate")}
    return {
        key: np.pad(value, [(0, 0), (0, added.get(key, 0)), *[(0, 0)] * (value.ndim - 2)][: value.ndim])
        for key, value in batch.items()
    }
