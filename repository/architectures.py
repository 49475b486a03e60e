"""The torch architectures that a push may name: weights alone, in safetensors, need no code of the caller's.

The modules themselves stand with the workers, under the same names; a test there holds the two together.
"""

from __future__ import annotations

ARCHITECTURES: dict[str, str] = {
    "mlp": "fully connected layers with ReLU between them; the sizes are read off the weights",
    "digits-cnn": "a small convolutional network for 8 by 8 grey images, 10 classes",
}
"""Name → what it is, for people."""
