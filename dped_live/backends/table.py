"""TableNetwork on a device: on a CPU by compiled functions, in one pass over the rows, on a GPU by torch.

Beside the picture either needs little memory, so there are no tiles.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dped_live.backends.torch_module import memory_error
from dped_live.statistics import Statistics
from dped_live.table_kernels import Array, as_array, enhance_rows, in_parts, packed
from dped_live.table_network import REACH, SIDE, TableNetwork, Tables, values_of


class TableBackend:
    """Runs a table network in float32; see backends.Backend. On a CPU it uses as many threads as torch."""

    in_float32 = None

    def __init__(self, network: TableNetwork, device: torch.device) -> None:
        self.device = device
        self.shares = device.type == "cpu"
        name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
        self.description = f"{name}, fp32"
        self._network = copy.deepcopy(network).to(device).eval().requires_grad_(False)
        if device.type == "cpu":
            self.enhance(torch.zeros(1, 3, 1, 1))  # compiles, where that has not been done, before pictures wait

    def enhance(self, image: Tensor, statistics: Statistics | None = None, out: Tensor | None = None) -> Tensor:
        with torch.inference_mode(), memory_error(image):
            statistics = self._network.statistics(image) if statistics is None else statistics
            if self.device.type != "cpu":
                enhanced: Tensor = self._network(image, statistics)
                return enhanced if out is None else out.copy_(enhanced)
            result = torch.empty(image.shape) if out is None else out
            self._enhance_on_cpu(image, values_of(statistics), result)
            return result

    def measure(self, image: Tensor, statistics: Statistics | None = None) -> tuple[Tensor, Statistics]:
        own = self.statistics(image)
        return self.enhance(image, statistics or own), own

    def statistics(self, image: Tensor) -> Statistics:
        with torch.inference_mode(), memory_error(image):
            return self._network.statistics(image)

    def _enhance_on_cpu(self, image: Tensor, values: Tensor, result: Tensor) -> None:
        detail = self._network.detail
        picture = image[0].contiguous().numpy()
        # Another layout is written to by a copy.
        written = result[0] if result.is_contiguous() else torch.empty(image.shape[1:])
        arguments = (
            SIDE,
            _packed(self._network.first, values),
            as_array(detail.kernel),
            as_array(detail.threshold.abs()),
            as_array(detail.strength(values)[0]),
            as_array(detail.middle.weight),
            as_array(detail.last.weight[0]),
            _packed(self._network.second, values),
            written.numpy(),
        )
        in_parts(enhance_rows, picture, REACH, torch.get_num_threads(), arguments)
        if not result.is_contiguous():
            result[0] = written


def _packed(tables: Tables, values: Tensor) -> Array:
    return packed(tables.mixed(values).numpy().reshape(SIDE, SIDE, SIDE, 3))
