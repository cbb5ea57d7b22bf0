"""Score the authors' models with their own TensorFlow code; tests/test_evaluation.py holds what came of it.

    python tools/original_scores.py DPED PATCHES WEIGHTS [MODEL ...] [--pairs N]

DPED is a checkout of github.com/aiff22/DPED at commit 32f56f2, of which models.py and ssim.py are imported; PATCHES
holds iphone/N.jpg and canon/N.jpg (dped/patches in the developers' data folder), WEIGHTS the checkpoints MODEL_orig.*
(dped/weights there). It needs an environment of its own, for dped-live does not need TensorFlow:

    python -m venv tf && tf/bin/pip install tensorflow-cpu==2.21 "scipy<2" pillow

As train_model.py does, inputs are float16(byte) / 255, the network and its PSNR are computed in float32, one mean
squared error and one MS-SSIM are taken of each batch of 50 in order of the numbers, and these are averaged. Beside
them stand the means over batches of one picture; the mean PSNR leaves out pictures equal to the camera's, where it is
infinite. The first line scores the phone's pictures as they are.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

BATCH = 50


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dped", type=Path)
    parser.add_argument("patches", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("models", nargs="*", default=["iphone", "blackberry", "sony"])
    parser.add_argument("--pairs", type=int, help="only the first so many (default: all)")
    options = parser.parse_args()

    # By name: TensorFlow and scipy are no dependencies, and type checks must not depend on their being there.
    tf = import_module("tensorflow")
    tf.compat.v1.disable_v2_behavior()
    sys.path.insert(0, str(options.dped))
    resnet, multi_scale_ssim = import_module("models").resnet, import_module("ssim").MultiScaleSSIM

    numbers = sorted(int(path.stem) for path in (options.patches / "iphone").glob("*.jpg"))[: options.pairs]
    phone, camera = (
        np.stack([pixels(options.patches / folder / f"{number}.jpg") for number in numbers])
        for folder in ("iphone", "canon")
    )
    scores = {"input": phone}
    for model in options.models:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            image = tf.compat.v1.placeholder(tf.float32, [None, *phone.shape[1:]])
            enhanced = resnet(image)
            tf.compat.v1.train.Saver().restore(session, str(options.weights / f"{model}_orig"))
            batches = [phone[first : first + BATCH] for first in range(0, len(phone), BATCH)]
            scores[model] = np.concatenate([session.run(enhanced, {image: batch}) for batch in batches])

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        image, target = (tf.compat.v1.placeholder(tf.float32) for _ in range(2))
        psnr_of_one_error = -10 * tf.math.log(tf.reduce_mean(tf.square(target - image))) / tf.math.log(10.0)

        def score(pictures: np.ndarray, size: int) -> tuple[float, float]:
            """Mean PSNR in dB and mean MS-SSIM of batches of `size`, the remainder dropped."""
            batches = [slice(first, first + size) for first in range(0, len(pictures) - size + 1, size)]
            psnr = [session.run(psnr_of_one_error, {image: pictures[b], target: camera[b]}) for b in batches]
            similarity = [multi_scale_ssim(camera[b] * 255, pictures[b] * 255) for b in batches]
            return float(np.mean(np.array(psnr)[np.isfinite(psnr)])), float(np.mean(similarity))

        for name, pictures in scores.items():
            batch, single = score(pictures, BATCH), score(pictures, 1)
            print(
                f"{name}: of batches {batch[0]:.5f} dB {batch[1]:.6f}; of pictures {single[0]:.5f} dB {single[1]:.6f}"
            )


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3), float64 that holds float16 values, as load_dataset.py has it."""
    with Image.open(path) as picture:
        return (np.asarray(picture).astype(np.float16) / np.float16(255)).astype(np.float64)


if __name__ == "__main__":
    main()
