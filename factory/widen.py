"""Make a trained DenseDepth wider without changing what it predicts.

Every channel of the old network lives on in the new one. The new channels start as an untrained
network's would, and the old ones do not listen to them yet: those weights are 0, and learn. (The
idea is Net2Net's, arXiv 1511.05641, which copies channels instead.)
"""

from __future__ import annotations

import torch
from torch import nn

from builder.depth.densedepth import DenseDepthConfig, DenseDepthForDepthEstimation
from builder.errors import TrainingError

Places = list[int]
"""Where the old channels of a tensor lie among the new ones."""


@torch.no_grad()
def widened(
    old: DenseDepthForDepthEstimation, growth_rate: int, decoder_channels: int
) -> DenseDepthForDepthEstimation:
    """A model of the same depth that predicts what `old` does; seeded by torch's generator.

    Raises:
        TrainingError: it would be narrower somewhere.
    """
    before = old.config
    wider = {"growth_rate": growth_rate, "decoder_channels": decoder_channels}
    config = DenseDepthConfig(**{**before.to_diff_dict(), **wider})
    widths = zip(before.decoder_widths, config.decoder_widths, strict=True)
    if growth_rate < before.growth_rate or any(was > now for was, now in widths):
        raise TrainingError(
            f"The start model has a growth rate of {before.growth_rate} and "
            f"{before.decoder_widths[0]} decoder channels, more than the {growth_rate} and "
            f"{decoder_channels} of the settings; choose another start model."
        )
    new = DenseDepthForDepthEstimation(config)
    encoder, was = new.encoder, old.encoder
    places = list(range(before.num_init_features))
    _copy_conv(was.stem.conv, encoder.stem.conv, list(range(before.num_channels)))
    _copy_norm(was.stem.norm, encoder.stem.norm, places)
    taps = [places, places]
    for index, (block, other) in enumerate(zip(was.blocks, encoder.blocks, strict=True)):
        for layer, wide in zip(block.layers, other.layers, strict=True):
            _copy_norm(layer.norm1, wide.norm1, places)
            _copy_conv(layer.conv1, wide.conv1, places)
            inner = list(range(layer.conv1.out_channels))
            _copy_norm(layer.norm2, wide.norm2, inner)
            _copy_conv(layer.conv2, wide.conv2, inner)
            grown = wide.conv1.in_channels
            places = places + list(range(grown, grown + before.growth_rate))
        if index < len(was.transitions):
            transition, wide = was.transitions[index], encoder.transitions[index]
            _copy_norm(transition.norm, wide.norm, places)
            _copy_conv(transition.conv, wide.conv, places)
            places = list(range(transition.conv.out_channels))
            taps.append(places)
    _copy_norm(was.norm, encoder.norm, places)
    _copy_conv(old.decoder.conv, new.decoder.conv, places)
    places = list(range(old.decoder.conv.out_channels))
    steps = zip(old.decoder.up_steps, new.decoder.up_steps, reversed(taps[:4]), strict=True)
    for (step, wide, tap), features in zip(steps, config.decoder_widths, strict=False):
        _copy_conv(step.conv_a, wide.conv_a, places + [features + place for place in tap])
        places = list(range(step.conv_a.out_channels))
        _copy_conv(step.conv_b, wide.conv_b, places)
    _copy_conv(old.head, new.head, places)
    return new


def _copy_conv(old: nn.Conv2d, new: nn.Conv2d, places: Places) -> None:
    """Its first output channels become the old ones, which hear the old input channels alone."""
    out = old.out_channels
    new.weight[:out] = 0
    new.weight[:out, places] = old.weight
    if old.bias is not None and new.bias is not None:
        new.bias[:out] = old.bias


def _copy_norm(old: nn.BatchNorm2d, new: nn.BatchNorm2d, places: Places) -> None:
    for name, values in old.state_dict().items():
        if values.ndim:
            new.state_dict()[name][places] = values
