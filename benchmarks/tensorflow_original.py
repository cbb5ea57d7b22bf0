"""The original's network in TensorFlow, timed: the other side of benchmarks/tensorflow_cpu.py, which starts it.

    python benchmarks/tensorflow_original.py CHECKPOINT IMAGE.npy RESULT.npy THREADS

Needs tensorflow and numpy only. The graph is that of models.py (aiff22/DPED), run in a session as test_model.py does.
CHECKPOINT: the path without ".index". IMAGE: float32 (1, H, W, 3). For each line on stdin one picture is computed, and
its seconds are printed; RESULT is that of the last.
"""

from __future__ import annotations

import os
import sys
import time

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
import tensorflow  # type: ignore[import-untyped, import-not-found, unused-ignore]

tf = tensorflow.compat.v1


def generator(image: object, weights: dict[str, np.ndarray]) -> object:
    """`resnet` of models.py."""

    def convolved(x: object, layer: int) -> object:
        return tf.nn.conv2d(x, weights[f"W{layer}"], strides=[1, 1, 1, 1], padding="SAME") + weights[f"b{layer}"]

    def normalised(x: object, norm: int) -> object:
        mean, variance = tf.nn.moments(x, [1, 2], keep_dims=True)
        shift, scale = (weights[f"Variable_{index}" if index else "Variable"] for index in (2 * norm, 2 * norm + 1))
        return scale * ((x - mean) / (variance + 1e-3) ** 0.5) + shift

    x = tf.nn.relu(convolved(image, 1))
    for block in range(4):
        y = x
        for norm in (2 * block, 2 * block + 1):
            y = tf.nn.relu(normalised(convolved(y, norm + 2), norm))
        x = y + x
    for layer in (10, 11):
        x = tf.nn.relu(convolved(x, layer))
    return tf.nn.tanh(convolved(x, 12)) * 0.58 + 0.5


def main() -> None:
    checkpoint, image_path, result_path, threads = sys.argv[1:]
    tf.disable_eager_execution()
    reader = tf.train.NewCheckpointReader(checkpoint)
    prefix = "generator/"
    weights = {
        name.removeprefix(prefix): reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name.startswith(prefix)
    }
    image = np.load(image_path)
    config = tf.ConfigProto(intra_op_parallelism_threads=int(threads), inter_op_parallelism_threads=int(threads))
    with tf.Session(config=config) as session:
        place = tf.placeholder(tf.float32, image.shape)
        enhanced = generator(place, weights)
        for _ in sys.stdin:
            begin = time.perf_counter()
            result = session.run(enhanced, feed_dict={place: image})
            print(time.perf_counter() - begin, flush=True)
            np.save(result_path, result)


if __name__ == "__main__":
    main()
