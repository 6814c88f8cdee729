"""DenseDepth in torch: RGB images (B, 3, H, W) in [0, 1] to depth maps (B, H/2, W/2) in metres.

Written from the paper (Alhashim and Wonka, "High Quality Monocular Depth Estimation via Transfer
Learning", arXiv 1812.11941) and from the graph that its published checkpoints describe. Shapes are
(B, C, height, width); the stride of a tensor against the input stands in comments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # the name every torch reader knows
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import DepthEstimatorOutput

from .configuration_densedepth import DenseDepthConfig

HIDDEN_STATE_NAMES = (
    "stem",  # stride 2
    "stem_pool",  # stride 4
    "transition_1",  # stride 8
    "transition_2",  # stride 16
    "encoder",  # stride 32, after the final norm and ReLU
    "decoder_conv",  # stride 32
    "up_1",  # stride 16
    "up_2",  # stride 8
    "up_3",  # stride 4
    "up_4",  # stride 2
    "inverse_depth",  # stride 2, one channel: y before it becomes metres, always float32
)
"""What `hidden_states` holds, in this order."""

INPUT_MULTIPLE = 32  # the encoder halves its input five times
L1_WEIGHT = 0.1  # lambda in section 3.2 of the paper
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # Wang et al. 2004, as are the two constants
SSIM_K1, SSIM_K2 = 0.01, 0.03


class DenseDepthDenseLayer(nn.Module):
    """One dense layer: norm, ReLU, 1x1 convolution, norm, ReLU, 3x3 convolution."""

    def __init__(self, config: DenseDepthConfig, in_channels: int) -> None:
        super().__init__()
        inner = config.bn_size * config.growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels, eps=config.batch_norm_eps)
        self.conv1 = nn.Conv2d(in_channels, inner, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner, eps=config.batch_norm_eps)
        self.conv2 = nn.Conv2d(inner, config.growth_rate, kernel_size=3, padding=1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C + growth_rate, h, w)."""
        new = self.conv1(F.relu(self.norm1(features), inplace=True))
        new = self.conv2(F.relu(self.norm2(new), inplace=True))
        return torch.cat((features, new), dim=1)


class DenseDepthDenseBlock(GradientCheckpointingLayer):
    """A run of dense layers at one resolution; gradient checkpointing's unit in the encoder."""

    def __init__(self, config: DenseDepthConfig, in_channels: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DenseDepthDenseLayer(config, in_channels + index * config.growth_rate)
            for index in range(num_layers)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C + num_layers * growth_rate, h, w)."""
        for layer in self.layers:
            features = layer(features)
        return features


class DenseDepthTransition(nn.Module):
    """Halve channels and resolution between two dense blocks."""

    def __init__(self, config: DenseDepthConfig, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels, eps=config.batch_norm_eps)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, kernel_size=1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, C/2, h/2, w/2)."""
        # DenseNet convolves, then averages. Both are linear and one acts on channels, the other on
        # positions, so they commute; this order does a quarter of the multiplications.
        pooled = F.avg_pool2d(F.relu(self.norm(features), inplace=True), kernel_size=2)
        return self.conv(pooled)  # type: ignore[no-any-return]


class DenseDepthStem(nn.Module):
    """The first convolution, to half the input size."""

    def __init__(self, config: DenseDepthConfig) -> None:
        super().__init__()
        channels = config.num_init_features
        self.conv = nn.Conv2d(
            config.num_channels, channels, kernel_size=7, stride=2, padding=3, bias=False
        )
        self.norm = nn.BatchNorm2d(channels, eps=config.batch_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, num_init_features, H/2, W/2)."""
        return F.relu(self.norm(self.conv(pixel_values)), inplace=True)


class DenseDepthEncoder(nn.Module):
    """A DenseNet without its classifier (arXiv 1608.06993), returning the decoder's taps."""

    def __init__(self, config: DenseDepthConfig) -> None:
        super().__init__()
        self.stem = DenseDepthStem(config)
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        channels = config.num_init_features
        for index, num_layers in enumerate(config.block_config):
            self.blocks.append(DenseDepthDenseBlock(config, channels, num_layers))
            channels += num_layers * config.growth_rate
            if index < len(config.block_config) - 1:
                self.transitions.append(DenseDepthTransition(config, channels))
                channels //= 2
        self.norm = nn.BatchNorm2d(channels, eps=config.batch_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) -> taps at strides 2, 4, 8, 16 and 32, with `config.encoder_channels`."""
        stem = self.stem(_to_dtype_of(pixel_values, self.stem.conv.weight))
        # Keras pads with zeros, torch with minus infinity: equal, for nothing here is negative.
        features = F.max_pool2d(stem, kernel_size=3, stride=2, padding=1)
        taps = [stem, features]
        for block, transition in zip(self.blocks[:3], self.transitions, strict=True):
            features = transition(block(features))
            taps.append(features)
        taps.pop()  # transition 3 is at stride 32 already: it feeds block 4 and no skip
        features = self.blocks[3](features)
        return [*taps, F.relu(self.norm(features), inplace=True)]


class DenseDepthUpStep(GradientCheckpointingLayer):
    """Double the resolution, join the encoder's tap, convolve twice."""

    def __init__(self, config: DenseDepthConfig, in_channels: int, skip: int, out: int) -> None:
        super().__init__()
        self.conv_a = nn.Conv2d(in_channels + skip, out, kernel_size=3, padding=1)
        self.conv_b = nn.Conv2d(out, out, kernel_size=3, padding=1)
        self.align_corners = config.align_corners
        self.leaky_between_convs = config.leaky_between_convs
        self.slope = float(config.leaky_slope)

    def forward(self, features: torch.Tensor, tap: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) and a tap (B, S, 2h, 2w) -> (B, out, 2h, 2w)."""
        features = F.interpolate(
            features, scale_factor=2, mode="bilinear", align_corners=self.align_corners
        )
        features = self.conv_a(torch.cat((features, tap), dim=1))
        if self.leaky_between_convs:
            features = F.leaky_relu(features, self.slope)
        return F.leaky_relu(self.conv_b(features), self.slope)


class DenseDepthDecoder(nn.Module):
    """A 1x1 convolution and four up-steps, from stride 32 to stride 2 (paper, section 3.1)."""

    def __init__(self, config: DenseDepthConfig) -> None:
        super().__init__()
        *skips, encoded = config.encoder_channels
        widths = config.decoder_widths
        self.conv = nn.Conv2d(encoded, widths[0], kernel_size=1)
        self.up_steps = nn.ModuleList(
            DenseDepthUpStep(config, before, skip, after)
            for before, skip, after in zip(widths[:-1], reversed(skips), widths[1:], strict=True)
        )

    def forward(self, taps: list[torch.Tensor]) -> list[torch.Tensor]:
        """The encoder's taps -> outputs of the 1x1 convolution and of the four up-steps."""
        # Casting lets a caller keep the encoder in float32 and hold the decoder, where five sixths
        # of the work is, in bfloat16: `model.decoder.to(torch.bfloat16)`.
        *skips, encoded = (_to_dtype_of(tap, self.conv.weight) for tap in taps)
        stages = [self.conv(encoded)]
        for step, tap in zip(self.up_steps, reversed(skips), strict=True):
            stages.append(step(stages[-1], tap))
        return stages


class DenseDepthPreTrainedModel(PreTrainedModel):
    """What Transformers asks of a model: config, weight initialisation, checkpointing."""

    config: DenseDepthConfig
    config_class = DenseDepthConfig
    base_model_prefix = "densedepth"
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012  # the base declares lists
    supports_gradient_checkpointing = True
    _no_split_modules = ["DenseDepthDenseBlock", "DenseDepthUpStep"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He initialisation in the encoder, Glorot in the decoder, which has few ReLUs."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, nn.Conv2d):
            if module.bias is None:  # an encoder convolution: all of them precede a norm or a ReLU
                init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                init.xavier_uniform_(module.weight)

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        """Checkpoint as the base class does, without counting a batch twice in the norms."""
        function = partial(gradient_checkpointing_func, context_fn=self._checkpoint_contexts)
        super()._set_gradient_checkpointing(enable, function, every_n_layers)

    def _checkpoint_contexts(self) -> tuple[AbstractContextManager[None], ...]:
        """Contexts of the forward pass and of its repetition during the backward pass."""
        return nullcontext(), _frozen_statistics(self)


class DenseDepthForDepthEstimation(DenseDepthPreTrainedModel):
    """DenseDepth: metric depth from a single image.

    Source: arXiv 1812.11941. See `DenseDepthConfig` for the flavours and the unit rule.
    """

    def __init__(self, config: DenseDepthConfig) -> None:
        super().__init__(config)
        self.encoder = DenseDepthEncoder(config)
        self.decoder = DenseDepthDecoder(config)
        self.head = nn.Conv2d(config.decoder_widths[-1], 1, kernel_size=3, padding=1)
        self._encoder_is_frozen = False
        self.post_init()  # type: ignore[no-untyped-call]

    def freeze_encoder(self) -> None:
        """Train the decoder and the head alone, from now on.

        The encoder's parameters get no gradients, and its BatchNorms stay in evaluation mode even
        after `train()`: they normalise by their running statistics and leave them as they are.
        """
        self._encoder_is_frozen = True
        self.encoder.requires_grad_(requires_grad=False)
        self.train(self.training)

    def train(self, mode: bool = True) -> DenseDepthForDepthEstimation:
        """Set training mode, as every module does, but for a frozen encoder."""
        super().train(mode)
        if self._encoder_is_frozen:
            self.encoder.eval()
        return self

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> DepthEstimatorOutput | tuple[Any, ...]:
        """Predict depth, and the training loss where labels are given.

        Args:
            pixel_values: (B, 3, H, W) RGB in [0, 1]; H and W multiples of 32. Any float type: it is
                cast to the type of the weights.
            labels: (B, h, w) depth in metres at any size; pixels that are 0, negative or not finite
                are unknown and ignored. Resized to the prediction's size by nearest neighbour.
            output_hidden_states: return the outputs of the stages in `HIDDEN_STATE_NAMES`.
            return_dict: False returns a tuple without the empty fields.
            **kwargs: ignored; Transformers passes such things as `output_attentions`.

        Returns:
            `DepthEstimatorOutput` with `predicted_depth` (B, H/2, W/2), float32 metres inside
            [min_depth, max_depth], NaN where the network gives no number: half the input's size,
            as the network is built; enlarge it with
            `DenseDepthImageProcessor.post_process_depth_estimation`. `loss` is a float32 scalar.

        Raises:
            ValueError: the input's shape or the labels' shape does not fit.
        """
        self._check_input(pixel_values)
        if return_dict is None:
            return_dict = self.config.return_dict
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        taps = self.encoder(pixel_values)
        stages = self.decoder(taps)
        inverse_depth = self.inverse_depth(stages[-1])
        nearest, farthest = self.config.depth_range_m
        output = DepthEstimatorOutput(
            loss=None if labels is None else self._loss(inverse_depth, labels),
            predicted_depth=inverse_depth_to_metres(inverse_depth[:, 0], nearest, farthest),
            hidden_states=(*taps, *stages, inverse_depth) if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()

    def inverse_depth(self, features: torch.Tensor) -> torch.Tensor:
        """The one-channel head, (B, C, h, w) of any float type -> y as (B, 1, h, w) float32.

        In float32 whatever the weights' type: it is under a thousandth of the work, and y rounded
        to bfloat16 would come in visible steps of 0.4 %.
        """
        with torch.autocast(features.device.type, enabled=False):
            # A 3x3 convolution to one channel is a product with nine columns, each then shifted
            # and summed: a quarter of the time of conv2d, which has no good path for one channel.
            columns = self.head.weight[0].float().flip(1, 2).flatten(1)
            products = columns.T @ features.float().flatten(2)
            y = F.fold(products, features.shape[2:], kernel_size=3, padding=1)
            bias = self.head.bias
            return y if bias is None else y + bias.float()

    def _loss(self, inverse_depth: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The paper's loss of y (B, 1, h, w) against labels (B, any, any) in metres."""
        if labels.ndim != 3 or labels.shape[0] != inverse_depth.shape[0]:
            raise ValueError(
                f"labels must be ({inverse_depth.shape[0]}, height, width) depths in metres, "
                f"one map per image, got shape {tuple(labels.shape)}."
            )
        nearest, farthest = self.config.depth_range_m
        with torch.autocast(inverse_depth.device.type, enabled=False):
            depth_m = F.interpolate(labels[:, None].float(), size=inverse_depth.shape[-2:])
            known = torch.isfinite(depth_m) & (depth_m > 0)
            # An unknown pixel needs some finite stand-in, for NaN times zero is NaN.
            target = farthest / torch.where(known, depth_m, farthest).clamp(nearest, farthest)
            l1, gradient, ssim = loss_terms(inverse_depth, target, known, farthest / nearest)
            return L1_WEIGHT * l1 + gradient + ssim

    def _check_input(self, pixel_values: torch.Tensor) -> None:
        """Refuse what the network cannot take, with the shape in the sentence."""
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must be (batch, {self.config.num_channels}, height, width), "
                f"got shape {shape}."
            )
        height, width = shape[2:]
        if min(height, width) < 1 or height % INPUT_MULTIPLE or width % INPUT_MULTIPLE:
            raise ValueError(
                f"DenseDepth halves its input five times, so height and width must be multiples of "
                f"{INPUT_MULTIPLE}; got {height} x {width}. Resize the image first, for example "
                "with DenseDepthImageProcessor."
            )


def inverse_depth_to_metres(
    inverse_depth: torch.Tensor, min_depth: float, max_depth: float
) -> torch.Tensor:
    """Turn the network's inverse depth y into metres: clip(max_depth / y, min_depth, max_depth).

    Any shape and float type in, the same shape in float32 out. y <= 0 means "infinitely far" and
    becomes `max_depth`; NaN and infinity say nothing and become NaN.

    Source: arXiv 1812.11941, section 3.2 (the target is m / depth, m the maximum depth).
    """
    # Every y up to 1 is max_depth after clipping, so a floor of 1 also keeps y <= 0 from dividing.
    depth_m = (max_depth / inverse_depth.float().clamp(min=1.0)).clamp(min_depth, max_depth)
    return torch.where(inverse_depth.isfinite(), depth_m, torch.nan)


def loss_terms(
    predicted: torch.Tensor, target: torch.Tensor, known: torch.Tensor, value_range: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The three parts of the paper's loss, unweighted, each a mean over known pixels.

    Args:
        predicted: inverse depth (B, 1, h, w), float32.
        target: the same, from the labels.
        known: (B, 1, h, w) bool; what is predicted elsewhere has no influence.
        value_range: span of the target's values, for the two constants of SSIM.

    Returns:
        Mean absolute difference; mean absolute difference of the x and of the y gradients (forward
        differences, pairs of known pixels), summed; mean of (1 - SSIM) / 2. All 0 if none is known.

    Source: arXiv 1812.11941, section 3.2; SSIM: Wang et al. 2004. Where pixels are unknown and at
    the border, SSIM's Gaussian window is cut to the known pixels and its weights sum to 1 again.
    """
    error = torch.where(known, predicted - target, 0.0)
    l1 = _known_mean(error.abs(), known)
    known_x, known_y = known[..., 1:] & known[..., :-1], known[..., 1:, :] & known[..., :-1, :]
    gradient = _known_mean(error.diff(dim=-1).abs(), known_x)
    gradient = gradient + _known_mean(error.diff(dim=-2).abs(), known_y)
    ssim = _known_mean((1 - _ssim_map(predicted, target, known, value_range)) / 2, known)
    return l1, gradient, ssim


def _ssim_map(
    x: torch.Tensor, y: torch.Tensor, known: torch.Tensor, value_range: float
) -> torch.Tensor:
    """Structural similarity around each pixel, (B, 1, h, w); meaningless where not known."""
    x, y, weight = torch.where(known, x, 0.0), torch.where(known, y, 0.0), known.to(x.dtype)
    maps = torch.cat((weight, x, y, x * x, y * y, x * y), dim=1)  # (B, 6, h, w)
    sums = _blur(maps)
    total = sums[:, :1].clamp(min=1e-6)
    mean_x, mean_y, xx, yy, xy = (sums[:, [index]] / total for index in range(1, 6))
    c1, c2 = (SSIM_K1 * value_range) ** 2, (SSIM_K2 * value_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    covariance = 2 * (xy - mean_x * mean_y) + c2
    variances: torch.Tensor = xx - mean_x**2 + yy - mean_y**2 + c2
    return luminance * covariance / variances


def _blur(maps: torch.Tensor) -> torch.Tensor:
    """Gaussian window sums of every channel of (B, C, h, w), zeros outside."""
    offsets = torch.arange(SSIM_WINDOW, device=maps.device, dtype=maps.dtype) - SSIM_WINDOW // 2
    kernel = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    kernel = (kernel / kernel.sum()).expand(maps.shape[1], 1, 1, -1)
    rows = F.conv2d(maps, kernel, padding=(0, SSIM_WINDOW // 2), groups=maps.shape[1])
    kernel = kernel.transpose(2, 3)
    return F.conv2d(rows, kernel, padding=(SSIM_WINDOW // 2, 0), groups=maps.shape[1])


def _known_mean(values: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Mean of the values where known; 0, with a gradient of 0, where nothing is."""
    return torch.where(known, values, 0.0).sum() / known.sum().clamp(min=1)


def _to_dtype_of(features: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Cast to the weights' type, but leave the choice to autocast where that is on."""
    if torch.is_autocast_enabled(features.device.type):
        return features
    return features.to(weight.dtype)


@contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Keep every BatchNorm from updating its running statistics, while it still uses the batch's.

    Checkpointing runs a block's forward pass again during the backward pass; without this the norms
    would count each batch twice. A momentum of 0 leaves the statistics as they are, bit for bit.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, tracked) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, tracked


__all__ = ["HIDDEN_STATE_NAMES", "DenseDepthForDepthEstimation", "DenseDepthPreTrainedModel"]
