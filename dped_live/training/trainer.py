"""One step of training: the generator's update, then the discriminator's (the loop's body in train_model.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Adam

from dped_live.errors import BackendError
from dped_live.network import Network
from dped_live.training.discriminator import Discriminator
from dped_live.training.losses import (
    LossWeights,
    color_loss,
    content_loss,
    discriminator_accuracy,
    discriminator_loss,
    greyscale,
    swapped,
    texture_loss,
    total_variation_loss,
)
from dped_live.training.pairs import Batch, PatchPairs, to_float
from dped_live.training.processes import Processes

LEAST_SCALE = 1.0
"""Gradients in fp16 are scaled up against underflow; where they overflow below this, training has failed."""


class Losses(NamedTuple):
    """Of a batch, or the means over several.

    generator: the weighted sum of the four terms that follow, each as losses.py has it; content is 0 without VGG.
    discriminator: its loss, a sum over the batch. accuracy: the part of the batch that it is right about.
    """

    generator: float
    content: float
    color: float
    texture: float
    tv: float
    discriminator: float
    accuracy: float


class Trainer:
    """A generator and a discriminator in training, each with its Adam as the original sets it.

    TensorFlow adds Adam's epsilon, 1e-8, before the second moment is corrected for its start from zero, PyTorch
    after: at first the original's is in effect 3e-7. That matters to gradients of that size only.
    """

    def __init__(
        self,
        generator: Network,
        discriminator: Discriminator,
        features: nn.Module | None,
        weights: LossWeights,
        learning_rate: float,
        precision: torch.dtype,
        processes: Processes,
    ) -> None:
        """Take the networks over: they are moved to the processes' device and trained in place.

        features: what the content loss compares, pictures (N, 3, P, P) to (N, C, h, w); None leaves that term out.
        precision: what convolutions compute in; parameters, the norms' statistics and losses stay float32.
        """
        for network in (generator, discriminator, features):
            if network is not None:
                network.to(processes.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator = generator.train().requires_grad_(True)
        self.discriminator = discriminator.train()
        self.features = features
        self._weights = weights
        self._precision = precision
        self._processes = processes
        self._parallel_generator = processes.parallel(generator)
        self._parallel_discriminator = processes.parallel(discriminator)
        self._adams = {
            name: Adam(network.parameters(), learning_rate, betas=(0.9, 0.999), eps=1e-8)
            for name, network in self._networks.items()
        }
        # It does nothing unless enabled: bfloat16 has the range of float32.
        self._scaler = torch.amp.GradScaler(processes.device.type, enabled=precision == torch.float16)

    def step(self, batch: Batch) -> Losses:
        """Update the generator and then the discriminator, which sees what the updated generator makes.

        batch: this process's slice. Returns the losses of the whole batch before the updates.
        Raises FloatingPointError, which says what is not finite; the networks are spoilt then.
        """
        terms, norm = self._update_generator(batch.generator)
        discriminator_terms, discriminator_norm = self._update_discriminator(batch.discriminator, batch.swaps)
        self._scaler.update()
        # The one place where a GPU is waited for.
        values = torch.stack([*terms, *discriminator_terms, norm, discriminator_norm]).double()
        *means, norm_, discriminator_norm_ = (self._processes.sum(values) / self._processes.world_size).tolist()
        losses = self.losses(*means)
        expect_finite(losses, {"generator": norm_, "discriminator": discriminator_norm_})
        if self._scaler.get_scale() < LEAST_SCALE:
            raise FloatingPointError("gradients overflow in fp16")
        return losses

    def losses(
        self, content: float, color: float, texture: float, tv: float, discriminator: float, accuracy: float
    ) -> Losses:
        """With the generator's weighted sum."""
        weights = self._weights
        total = weights.content * content + weights.color * color + weights.texture * texture + weights.tv * tv
        return Losses(total, content, color, texture, tv, discriminator, accuracy)

    def content_loss(self, enhanced: Tensor, target: Tensor) -> Tensor:
        """Of pictures; 0 without features."""
        if self.features is None:
            return enhanced.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            wanted = self.features(target)
        return content_loss(self.features(enhanced), wanted)

    def pictures(self, pairs: PatchPairs) -> tuple[Tensor, Tensor]:
        """Patches of the phone and of the camera as the networks take them, (N, 3, P, P) each, on the device."""
        phone, camera = (
            to_float(pixels.to(self._processes.device)).contiguous(memory_format=torch.channels_last)
            for pixels in (pairs.phone, pairs.camera)
        )
        return phone, camera

    def _update_generator(self, pairs: PatchPairs) -> tuple[list[Tensor], Tensor]:
        """Returns content, colour, texture and TV loss, and the norm of the gradient."""
        phone, camera = self.pictures(pairs)
        self.discriminator.requires_grad_(False)
        with self._autocast():
            enhanced = self._parallel_generator(phone)
            content = self.content_loss(enhanced, camera)
            logits = self.discriminator(greyscale(enhanced))
        # Processes take the mean of losses and gradients; this loss is a sum over the batch.
        texture = self._processes.world_size * texture_loss(logits)
        terms = [content, color_loss(enhanced, camera), texture, total_variation_loss(enhanced)]
        weights = self._weights
        factors = (weights.content, weights.color, weights.texture, weights.tv)
        norm = self._descend("generator", sum(factor * term for factor, term in zip(factors, terms, strict=True)))
        self.discriminator.requires_grad_(True)
        return [term.detach() for term in terms], norm

    def _update_discriminator(self, pairs: PatchPairs, swaps: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns its loss and its accuracy, and the norm of the gradient."""
        phone, camera = self.pictures(pairs)
        is_target = swaps.to(self._processes.device)
        with torch.no_grad(), self._autocast():
            enhanced = self.generator(phone)
        with self._autocast():
            logits = self._parallel_discriminator(swapped(greyscale(enhanced), greyscale(camera), is_target))
        loss = self._processes.world_size * discriminator_loss(logits, is_target)  # a sum as well
        norm = self._descend("discriminator", loss)
        return [loss.detach(), discriminator_accuracy(logits, is_target)], norm

    def _descend(self, name: str, loss: Tensor | float) -> Tensor:
        assert isinstance(loss, Tensor)
        adam = self._adams[name]
        adam.zero_grad()
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(adam)
        gradients = [parameter.grad for parameter in self._networks[name].parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._scaler.step(adam)
        # Scaled gradients may overflow now and then: the step is left out, and the scale is lowered.
        return norm.new_zeros(()) if self._scaler.is_enabled() else norm

    def _autocast(self) -> torch.autocast:
        enabled = self._precision != torch.float32
        return torch.autocast(self._processes.device.type, self._precision if enabled else None, enabled)

    # What a checkpoint holds.

    @property
    def _networks(self) -> dict[str, Network | Discriminator]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def tensors(self) -> dict[str, Tensor]:
        """All that the next steps depend on, by name; as it is now until the next step."""
        found = {f"scaler.{key}": torch.tensor(value) for key, value in self._scaler.state_dict().items()}
        for name, network in self._networks.items():
            for key, parameter in network.named_parameters():
                found[f"{name}.{key}"] = parameter.detach()
                for moment, tensor in self._moments(name, parameter).items():
                    found[f"{name}_adam.{key}.{moment}"] = tensor
        return found

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to where `tensors` was called; they are of the names and shapes that it returns here."""
        for name, network in self._networks.items():
            for key, parameter in network.named_parameters():
                parameter.copy_(tensors[f"{name}.{key}"])
                moments = self._moments(name, parameter)
                for moment, tensor in moments.items():
                    tensor.copy_(tensors[f"{name}_adam.{key}.{moment}"])
                self._adams[name].state[parameter] = moments
        if self._scaler.is_enabled():
            self._scaler.load_state_dict({key: tensors[f"scaler.{key}"].item() for key in self._scaler.state_dict()})

    def _moments(self, name: str, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Adam's state of a parameter; what Adam begins with where it has not begun."""
        return self._adams[name].state.get(parameter) or {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def expect_finite(losses: Losses, gradients: Mapping[str, float] | None = None) -> None:
    """Raise FloatingPointError, which names what is not, unless all losses and norms of gradients are finite."""
    values = {f"the {name} loss": getattr(losses, name) for name in ("content", "color", "texture", "tv")}
    for name, norm in (gradients or {}).items():
        values[f"the {name}'s gradient"] = norm
    values["the discriminator loss"] = losses.discriminator
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}")


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """What a choice of precision means on a device.

    "auto" is float32 on a CPU. On a GPU it is bf16 where its convolutions run at full speed (Ampere and later), for
    it has the range of float32, so that no gradient under- or overflows; on the two generations before it is fp16,
    with scaled gradients. Raises BackendError if the device cannot compute in it.
    """
    if device.type == "cpu":
        if name == "fp16":
            raise BackendError("training in fp16 is for GPUs; on a CPU use --precision fp32 or bf16")
        return torch.bfloat16 if name == "bf16" else torch.float32
    capability = torch.cuda.get_device_capability(device)
    if name == "bf16" and capability < (8, 0):
        raise BackendError(f"{torch.cuda.get_device_name(device)} has no bf16; use --precision fp16 or fp32")
    if name == "auto":
        name = "bf16" if capability >= (8, 0) else "fp16" if capability >= (7, 0) else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
