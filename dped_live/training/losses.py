"""The terms of the loss (Ignatov et al., ICCV 2017, section 3.1), as the original's train_model.py computes them.

Pictures are float tensors (N, 3, H, W), RGB in nominal [0, 1]; enhanced ones are NOT clamped. Every loss is a float32
scalar, computed in float32 under autocast too.

Where a batch is split over processes it matters how a term treats the N pictures:

    color_loss, total_variation_loss, content_loss    mean over the batch: average them over the processes
    texture_loss, discriminator_loss                  SUM over the batch: add them up

So the weight of the texture term grows with the batch, and a recipe holds for the batch of 50 that it was made with.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BLUR_SIZE = 21
BLUR_SIGMAS = 3

SMALLEST_PROBABILITY = 1e-10
"""Where the cross-entropy clips the softmax."""


@dataclass(frozen=True, slots=True)
class LossWeights:
    """The factors of the generator's four terms, which are then added."""

    content: float
    color: float
    texture: float
    tv: float


RECIPES = {
    # The defaults of process_command_args in the original's utils.py.
    "repository": LossWeights(content=10, color=0.5, texture=1, tv=2000),
    # arXiv 1704.02470, section 3.1.5.
    "paper": LossWeights(content=1, color=0.1, texture=0.4, tv=400),
}


def color_loss(enhanced: Tensor, target: Tensor) -> Tensor:
    """Half the squared difference of the blurred pictures: a sum over pixels and channels, a MEAN over the batch.

    enhanced, target: (N, 3, H, W). Source: `loss_color` in train_model.py.
    """
    # Blurring is linear, so the difference is blurred once instead of both pictures.
    return blur(enhanced.float() - target.float()).square().sum() / (2 * len(enhanced))


def blur(picture: Tensor) -> Tensor:
    """Blur every channel by 21x21 pixels, with zeros beyond the border (`blur` in the original's utils.py).

    picture: (N, 3, H, W). Returns float32 of the same shape.

    The kernel is no Gaussian of sigma 3: it is the SQUARE ROOT of the outer product of a Gaussian's integrals over 21
    intervals that reach a little beyond 3 sigmas, and so about a Gaussian of sigma 4.7 pixels, cut off at 10.
    """
    kernel = _blur_kernel(picture.device)
    # Contiguous, because cuDNN computes channels_last pictures in TF32, and PyTorch's own depthwise kernel in float32.
    picture = picture.float().contiguous()
    with torch.autocast(picture.device.type, enabled=False):
        # The square root of an outer product is the outer product of the square roots: two passes instead of 21.
        picture = F.conv2d(picture, kernel, padding=(BLUR_SIZE // 2, 0), groups=3)
        return F.conv2d(picture, kernel.transpose(2, 3), padding=(0, BLUR_SIZE // 2), groups=3)


@functools.cache
def _blur_kernel(device: torch.device) -> Tensor:
    """The blur along a column, (3, 1, 21, 1)."""
    reach = BLUR_SIGMAS + (2 * BLUR_SIGMAS + 1) / BLUR_SIZE / 2
    edges = [reach * (2 * index / BLUR_SIZE - 1) for index in range(BLUR_SIZE + 1)]
    cumulated = [math.erf(edge / math.sqrt(2)) for edge in edges]
    roots = [math.sqrt(after - before) for before, after in itertools.pairwise(cumulated)]
    profile = [root / sum(roots) for root in roots]
    # Made in inference mode, as while judging, it could not be used in training afterwards.
    with torch.inference_mode(False):
        return torch.tensor(profile, device=device).view(1, 1, BLUR_SIZE, 1).repeat(3, 1, 1, 1)


def greyscale(picture: Tensor) -> Tensor:
    """What the discriminator sees of a picture, by the weights of tf.image.rgb_to_grayscale; they add up to 0.9999.

    picture: (N, 3, H, W). Returns float32 (N, 1, H, W).
    """
    red, green, blue = picture.float().unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def swapped(enhanced_grey: Tensor, target_grey: Tensor, is_target: Tensor) -> Tensor:
    """The batch that the discriminator learns from: of each pair the target, or else the enhanced picture.

    enhanced_grey, target_grey: (N, 1, H, W). is_target: (N,), bool or float 0 and 1. Source: `adversarial_`.
    """
    chosen = is_target.to(enhanced_grey.dtype).view(-1, 1, 1, 1)
    return enhanced_grey * (1 - chosen) + target_grey * chosen


def discriminator_loss(logits: Tensor, is_target: Tensor) -> Tensor:
    """The cross-entropy, a SUM over the batch (`loss_discrim` in train_model.py).

    logits: (N, 2), column 0 for "a target", column 1 for "an enhanced picture".
    is_target: (N,), bool or float, what the pictures are.

    The original clips the softmax at 1e-10. A picture judged so wrongly costs 23.03 and has NO gradient.
    """
    # The logarithm is clipped instead of the probability: the same value and gradient, without a division by 1e-10.
    log_probability = F.log_softmax(logits.float(), dim=1).clamp_min(math.log(SMALLEST_PROBABILITY))
    truth = is_target.float()
    return -(truth * log_probability[:, 0] + (1 - truth) * log_probability[:, 1]).sum()


def texture_loss(logits: Tensor) -> Tensor:
    """MINUS the discriminator's loss on a batch of enhanced pictures, and so a SUM over the batch, at most 0.

    logits: (N, 2), of the enhanced pictures. Source: `loss_texture` in train_model.py, whose generator step sets adv_
    to zeros. This is the minimax loss of the first GANs, not the one that asks to be called a target: a picture that
    is found out costs 0 and has hardly a gradient; one that passes for a target has the most, up to the clip at
    -23.03, from where it has none.
    """
    return -discriminator_loss(logits, logits.new_zeros(len(logits)))


def discriminator_accuracy(logits: Tensor, is_target: Tensor) -> Tensor:
    """The part of the batch that the discriminator is right about, from 0 to 1, a MEAN over the batch.

    logits: (N, 2). is_target: (N,), bool or float 0 and 1. Source: `discim_accuracy` in train_model.py.
    """
    return ((logits[:, 0] >= logits[:, 1]) == is_target.bool()).float().mean()


def total_variation_loss(enhanced: Tensor) -> Tensor:
    """The squared differences of neighbours, a MEAN over pixels, channels and batch in each direction, added.

    enhanced: (N, 3, H, W), H and W at least 2. Source: `loss_tv` in train_model.py.
    """
    enhanced = enhanced.float()
    return enhanced.diff(dim=2).square().mean() + enhanced.diff(dim=3).square().mean()


def content_loss(enhanced_features: Tensor, target_features: Tensor) -> Tensor:
    """The squared difference of features, a MEAN over positions, channels and batch.

    enhanced_features, target_features: (N, C, h, w). Source: `loss_content` in train_model.py.
    """
    return F.mse_loss(enhanced_features.float(), target_features.float())
