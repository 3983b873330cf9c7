"""Keras layers: each one class, one file, `keras.ops` alone, the same on TensorFlow and JAX.

Dimension key, used by every docstring and shape comment: B batch, L history length, K tokens of an item, T = L * K,
C code columns (candidates in ranking), S sessions, D embedding width, H heads, F feature fields, E experts,
V vocabulary, Q codes, N negatives or other items in a row.
"""

from typing import Any, TypeAlias

Tensor: TypeAlias = Any
"""A tensor of whichever backend Keras runs on; they share no base class."""
