"""The decoder's up-step with two fifths fewer multiplications, for inference on a processor.

Enlarging acts on positions and mixing channels on channels, so they commute: the enlarged half of
convA is one 1x1 convolution at low resolution, to nine maps a channel (one for each of the kernel's
taps), which are then enlarged, shifted and summed. Those three are linear along rows and along
columns, so each axis is one product with a small matrix. The result is the same but for rounding.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .modeling_densedepth import DenseDepthForDepthEstimation, DenseDepthUpStep

# Of channels to side in px, from which on it was faster (benchmarks/RESULTS.md); the products with
# the matrices grow with the side, what is saved does not.
WORTHWHILE_RATIO = 16


class TapwiseUpStep(nn.Module):
    """An up-step for square features of one size.

    Args:
        step: what it computes; its weights are copied or shared.
        in_channels: of the features; the rest of convA's is the tap.
        side: of the features in px, before they are enlarged.
    """

    enlarge_rows: torch.Tensor
    enlarge_columns: torch.Tensor

    def __init__(self, step: DenseDepthUpStep, in_channels: int, side: int) -> None:
        super().__init__()
        weight, out = step.conv_a.weight.detach(), step.conv_b.in_channels
        self.side, self.out = side, out
        self.leaky_between_convs, self.slope = step.leaky_between_convs, step.slope
        self.conv_b = step.conv_b
        self.conv_skip = nn.Conv2d(weight.shape[1] - in_channels, out, kernel_size=3, padding=1)
        self.conv_skip.weight = nn.Parameter(weight[:, in_channels:].contiguous())
        self.conv_skip.bias = step.conv_a.bias
        # Channels in the order (tap column, output channel, tap row), so that the maps of a
        # column's three taps lie one below the other, as `enlarge_rows` wants them.
        taps = weight[:, :in_channels].permute(3, 0, 2, 1).reshape(9 * out, in_channels, 1, 1)
        self.conv_taps = nn.Conv2d(in_channels, 9 * out, kernel_size=1, bias=False)
        self.conv_taps.weight = nn.Parameter(taps.contiguous())
        matrix = _enlarging_matrix(side, step.align_corners).to(weight)
        self.register_buffer("enlarge_rows", matrix, persistent=False)
        self.register_buffer("enlarge_columns", matrix.T.contiguous(), persistent=False)

    def forward(self, features: torch.Tensor, tap: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) and a tap (B, S, 2h, 2w) -> (B, C/2, 2h, 2w), where h = w = side."""
        side, out = self.side, self.out
        maps = self.conv_taps(features).reshape(-1, 3 * out, 3 * side, side)
        maps = torch.matmul(self.enlarge_rows, maps)  # (B, 3 * out, 2h, w)
        maps = maps.reshape(-1, 3, out, 2 * side, side).permute(0, 2, 3, 1, 4)
        maps = maps.reshape(-1, out, 2 * side, 3 * side)
        features = self.conv_skip(tap) + torch.matmul(maps, self.enlarge_columns)
        if self.leaky_between_convs:
            features = F.leaky_relu(features, self.slope)
        return F.leaky_relu(self.conv_b(features), self.slope)


def _enlarging_matrix(side: int, align_corners: bool) -> torch.Tensor:
    """Enlarge by two, then shift by each of three taps and sum: (2 * side, 3 * side).

    Zeros come in at the border, as the convolution pads.
    """
    unit = torch.eye(side)[None]  # a signal for each source position
    enlarged = F.interpolate(unit, scale_factor=2, mode="linear", align_corners=align_corners)[0]
    padded = F.pad(enlarged.T, (0, 0, 1, 1))
    return torch.cat([padded[tap : tap + 2 * side] for tap in range(3)], dim=1)


def use_tapwise(network: DenseDepthForDepthEstimation, side: int) -> None:
    """Replace the up-steps where it is faster, for square inputs of `side` px and inference."""
    steps, widths = network.decoder.up_steps, network.config.decoder_widths
    for index, step in enumerate(steps):
        low = side // 32 * 2**index
        if widths[index] >= WORTHWHILE_RATIO * low:
            assert isinstance(step, DenseDepthUpStep)
            steps[index] = TapwiseUpStep(step, widths[index], low)
