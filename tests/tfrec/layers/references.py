"""The layers' mathematics again, as loops over plain NumPy: slow, independent of Keras and of the layers' code."""

import math

import numpy as np


def layer_norm(x, gamma=1.0, beta=0.0, epsilon=1e-6):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def silu(x):
    return x / (1 + np.exp(-x))


def bucket(gap):
    return min(max(math.floor(math.log(max(gap, 1)) / 0.301), 0), 128)


def transformer_block(
    x, valid, weights, *, heads, gap=None, tokens=1, full=False, norm_first=False, activation=lambda v: np.maximum(v, 0)
):
    """One row `x` `(T, D)`; `weights` by the last two parts of their paths."""
    x = x.astype(np.float64)
    length, width = x.shape
    size = width // heads
    query_source = layer_norm(x, weights["attention_norm/gamma"], weights["attention_norm/beta"]) if norm_first else x
    kernel, bias = weights["qkv_kernel"], weights["qkv_bias"]
    q = query_source @ kernel[:, :width] + bias[:width]
    k = x @ kernel[:, width : 2 * width] + bias[width : 2 * width]
    v = x @ kernel[:, 2 * width :] + bias[2 * width :]
    mixed = np.zeros((length, width))
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for i in range(length):
            scores = {}
            for j in range(length):
                same_item = i // tokens == j // tokens
                if valid[j] and (j <= i or (full and same_item)):
                    score = float(q[i, part] @ k[j, part])
                    if gap is not None:
                        score += weights["gap_bias/table"][gap[i // tokens, j // tokens], h]
                    scores[j] = score / math.sqrt(size)
            total = sum(math.exp(score) for score in scores.values())
            for j, score in scores.items():
                mixed[i, part] += math.exp(score) / total * v[j, part]
    attended = mixed @ weights["attention_output/kernel"] + weights["attention_output/bias"]

    def feed_forward(h):
        inner = activation(h @ weights["ffn_inner/kernel"] + weights["ffn_inner/bias"])
        return inner @ weights["ffn_output/kernel"] + weights["ffn_output/bias"]

    second = (weights["ffn_norm/gamma"], weights["ffn_norm/beta"])
    if norm_first:
        hidden = layer_norm(query_source + attended, *second)
        output = hidden + feed_forward(hidden)
    else:
        hidden = layer_norm(x + attended, weights["attention_norm/gamma"], weights["attention_norm/beta"])
        output = layer_norm(hidden + feed_forward(hidden), *second)
    return output * np.asarray(valid)[:, None]


def hstu_block(x, valid, weights, *, heads, key_dim, value_dim, max_length, gap=None, position=True, concat_ua=False):
    """One row `x` `(L, D)`."""
    x = x.astype(np.float64)
    length = len(x)
    projected = silu(layer_norm(x) @ weights["uvqk_kernel"])
    values, keys = heads * value_dim, heads * key_dim
    u, v = projected[:, :values], projected[:, values : 2 * values]
    q, k = projected[:, 2 * values : 2 * values + keys], projected[:, 2 * values + keys :]
    mixed = np.zeros((length, values))
    for h in range(heads):
        for i in range(length):
            for j in range(i + 1):
                if not valid[j]:
                    continue
                score = q[i, h * key_dim : (h + 1) * key_dim] @ k[j, h * key_dim : (h + 1) * key_dim]
                if position:
                    score += weights["position_table"][max_length - 1 - (i - j)]
                if gap is not None:
                    score += weights["gap_bias/table"][gap[i, j], 0]
                part = slice(h * value_dim, (h + 1) * value_dim)
                mixed[i, part] += silu(score) / max_length * v[j, part]
    normed = layer_norm(mixed)
    gated = np.concatenate([u, normed, u * normed], axis=1) if concat_ua else u * normed
    output = gated @ weights["output_dense/kernel"] + weights["output_dense/bias"] + x
    return output * np.asarray(valid)[:, None]


def mlp(x, weights, name):
    hidden = np.maximum(x @ weights[f"{name}/hidden_0/kernel"] + weights[f"{name}/hidden_0/bias"], 0)
    return hidden @ weights[f"{name}/output/kernel"] + weights[f"{name}/output/bias"]


def weights_of(layer):
    """Weights by their path below the layer."""
    return {weight.path.removeprefix(f"{layer.name}/"): np.asarray(weight) for weight in layer.weights}


def weights_below(weights, name):
    return {path.removeprefix(f"{name}/"): value for path, value in weights.items() if path.startswith(f"{name}/")}
