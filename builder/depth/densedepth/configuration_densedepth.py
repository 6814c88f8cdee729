"""Configuration of DenseDepth: a DenseNet encoder, a bilinear decoder, and one unit rule."""

# No `from __future__ import annotations` here: `strict` checks no field whose type is a string.

import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

MIN_DECODER_CHANNELS = 16  # the last of the four up-steps has a sixteenth of them


@strict
class DenseDepthConfig(PreTrainedConfig):
    """Shape, flavour and unit of a DenseDepth network.

    Depth unit: the network predicts an inverse depth `y = max_depth / metres` (section 3.2 of the
    paper, where `m` is our `max_depth`: 10 m for NYU Depth v2, 80 m for KITTI), so

        metres = clip(max_depth / y, min_depth, max_depth)

    With the NYU values this is clip(1000 / y, 10, 1000) / 100, the rule in centimetres known from
    the published checkpoints. `max_depth=80` alone gives the KITTI rule, since `min_depth` follows
    as a hundredth of it.

    Args:
        num_channels: channels of the input image.
        growth_rate: channels every dense layer adds.
        block_config: layers of the four dense blocks; (6, 12, 32, 32) is DenseNet-169,
            (6, 12, 24, 16) is DenseNet-121, (6, 12, 48, 32) is DenseNet-201.
        num_init_features: channels of the stem.
        bn_size: a dense layer's 1x1 convolution has `bn_size * growth_rate` channels.
        batch_norm_eps: 1.001e-5 is what the Keras encoders of the published checkpoints use.
        decoder_channels: output channels D of the decoder's 1x1 convolution; the up-steps have
            D/2, D/4, D/8 and D/16. None (default) means the encoder's channel count, the paper's
            full width (1664 for DenseNet-169); half-width checkpoints have 832.
        leaky_between_convs: apply LeakyReLU after an up-step's first convolution too (checkpoints
            trained with code from after 2019-03-11), not only after its second one.
        align_corners: up-sample with aligned corners (TensorFlow 1, the published checkpoints) or
            with half-pixel centres.
        leaky_slope: negative slope of every LeakyReLU.
        min_depth: nearest depth in metres; None (default) becomes `max_depth / 100`.
        max_depth: farthest depth in metres, and the scale of the inverse depth.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field has the wrong type, or a value no
            network can have.

    Source: Alhashim and Wonka, "High Quality Monocular Depth Estimation via Transfer Learning",
    arXiv 1812.11941, sections 3.1 and 3.2; encoder: Huang et al., "Densely Connected Convolutional
    Networks", arXiv 1608.06993.
    """

    model_type: ClassVar[str] = "densedepth"

    num_channels: int = 3
    growth_rate: int = 32
    block_config: list[int] | tuple[int, ...] = (6, 12, 32, 32)
    num_init_features: int = 64
    bn_size: int = 4
    batch_norm_eps: float = 1.001e-5
    decoder_channels: int | None = None
    leaky_between_convs: bool = False
    align_corners: bool = True
    leaky_slope: float | int = 0.2
    min_depth: float | int | None = None
    max_depth: float | int = 10.0

    def __post_init__(self, **kwargs: Any) -> None:
        """Settle what follows from other fields; called by the generated `__init__`."""
        self.block_config = list(self.block_config)  # as it reads back from JSON
        self.max_depth = float(self.max_depth)
        self.min_depth = self.max_depth / 100 if self.min_depth is None else float(self.min_depth)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def encoder_channels(self) -> list[int]:
        """Channels of the five encoder taps, finest first (strides 2, 4, 8, 16 and 32).

        The four finer ones are the decoder's skips, the last one is its input.
        """
        channels = self.num_init_features
        taps = [channels, channels]
        for index, layers in enumerate(self.block_config):
            channels += layers * self.growth_rate
            if index < len(self.block_config) - 1:
                channels //= 2
                taps.append(channels)
        # Transition 3 is at stride 32 already: it feeds block 4 and is not a tap.
        return [*taps[:4], channels]

    @property
    def decoder_widths(self) -> list[int]:
        """Channels after the decoder's 1x1 convolution and after each of its four up-steps."""
        first = self.decoder_channels
        if first is None:
            first = self.encoder_channels[-1]
        return [first // 2**step for step in range(5)]

    @property
    def depth_range_m(self) -> tuple[float, float]:
        """Nearest and farthest depth in metres, as floats."""
        farthest = float(self.max_depth)
        return (farthest / 100 if self.min_depth is None else float(self.min_depth)), farthest

    def validate_counts(self) -> None:
        """Refuse sizes no network can have (run by `strict`)."""
        if len(self.block_config) != 4 or min(self.block_config) < 1:
            raise ValueError(
                f"block_config must be four positive layer counts, got {list(self.block_config)}; "
                "(6, 12, 32, 32) is DenseNet-169."
            )
        for name in ("num_channels", "growth_rate", "num_init_features", "bn_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.decoder_widths[0] < MIN_DECODER_CHANNELS:
            raise ValueError(
                f"The decoder halves its {self.decoder_widths[0]} channels four times; "
                f"set decoder_channels to {MIN_DECODER_CHANNELS} or more."
            )

    def validate_numbers(self) -> None:
        """Refuse a slope, epsilon or depth range that makes no sense (run by `strict`)."""
        if not 0 < self.batch_norm_eps < 1:
            raise ValueError(f"batch_norm_eps must lie between 0 and 1, got {self.batch_norm_eps}.")
        if not 0 <= self.leaky_slope < 1:
            raise ValueError(f"leaky_slope must be at least 0 and below 1, got {self.leaky_slope}.")
        nearest, farthest = self.depth_range_m
        if not 0 < nearest < farthest < math.inf:
            raise ValueError(
                "Depths in metres must satisfy 0 < min_depth < max_depth < infinity, "
                f"got min_depth={nearest} and max_depth={farthest}."
            )


__all__ = ["DenseDepthConfig"]
