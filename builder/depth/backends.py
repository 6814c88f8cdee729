"""What runs a depth network: torch anywhere, OpenVINO on a processor, in a named precision.

`float32`; `bfloat16`, all weights and activations; `mixed`, DenseDepth alone: encoder in float32
and decoder in bfloat16, for the decoder has five sixths of the work and the encoder's long chain
of layers nearly all of the error. DenseDepth's head and its metres are float32 in every precision.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers.modeling_outputs import DepthEstimatorOutput

from builder.depth.densedepth import DenseDepthForDepthEstimation
from builder.depth.densedepth.modeling_densedepth import inverse_depth_to_metres
from builder.recipe import Precision

Shapes = Callable[[int, int], list[tuple[int, ...]]]  # of the inputs, by batch and input side


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 itself, so that it is faster than float32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # in older torch
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


class TorchBackend:
    """Runs any depth network in torch.

    Args:
        network: in float32; its weights are cast and moved.
        precision: of its weights and activations.
        device: where it runs. On CUDA a DenseDepth is compiled into CUDA graphs.
    """

    def __init__(self, network: Any, precision: Precision, device: torch.device) -> None:
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        (network.decoder if precision == "mixed" else network).to(
            torch.float32 if precision == "float32" else torch.bfloat16
        )
        self._network = network.to(device, memory_format=torch.channels_last)
        self._cuda = device.type == "cuda"
        if self._cuda and isinstance(network, DenseDepthForDepthEstimation) and find_spec("triton"):
            self._network.forward = torch.compile(network.forward, mode="reduce-overhead")

    def __call__(self, pixels: torch.Tensor) -> Any:
        """Return the network's outputs for `pixel_values` (B, 3, H, W) float32."""
        with self._exact():
            return self._network(pixel_values=pixels.to(self.dtype))

    def _exact(self) -> AbstractContextManager[None]:
        """Keep a GPU from rounding float32 to the 10 bits of TF32, as cuDNN does by default."""
        if not self._cuda:
            return nullcontext()
        return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


class _Features(nn.Module):
    """Encoder and decoder as one module."""

    def __init__(self, network: DenseDepthForDepthEstimation) -> None:
        super().__init__()
        self.encoder, self.decoder = network.encoder, network.decoder

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(pixels))[-1]  # type: ignore[no-any-return]


class _Encode(nn.Module):
    """The encoder, its taps as a tuple."""

    def __init__(self, network: DenseDepthForDepthEstimation) -> None:
        super().__init__()
        self.encoder = network.encoder

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.encoder(pixels))


class _Decode(nn.Module):
    """The decoder, from the taps to its last features."""

    def __init__(self, network: DenseDepthForDepthEstimation) -> None:
        super().__init__()
        self.decoder = network.decoder

    def forward(self, *taps: torch.Tensor) -> torch.Tensor:
        return self.decoder(list(taps))[-1]  # type: ignore[no-any-return]


class OpenVinoBackend:
    """Runs a DenseDepth in OpenVINO, on one thread of the processor.

    Args:
        network: in float32.
        precision: of what OpenVINO runs; the head stays in torch, in float32.
        batch_size: images of every call.
        side: of the input in px.
    """

    def __init__(
        self,
        network: DenseDepthForDepthEstimation,
        precision: Precision,
        batch_size: int,
        side: int,
    ) -> None:
        channels = network.config.encoder_channels

        def image(batch: int, side: int) -> list[tuple[int, ...]]:
            return [(batch, 3, side, side)]

        def taps(batch: int, side: int) -> list[tuple[int, ...]]:
            sides = (side >> i for i in range(1, 6))
            return [(batch, c, s, s) for c, s in zip(channels, sides, strict=True)]

        parts: list[tuple[nn.Module, Shapes, Precision]]
        if precision == "mixed":
            parts = [(_Encode(network), image, "float32"), (_Decode(network), taps, "bfloat16")]
        else:
            parts = [(_Features(network), image, precision)]
        self._stages = [
            _compiled(module, shapes(1, side), shapes(batch_size, side), precision)
            for module, shapes, precision in parts
        ]
        self._head, self._range = network.inverse_depth, network.config.depth_range_m

    def __call__(self, pixels: torch.Tensor) -> DepthEstimatorOutput:
        """Return `predicted_depth` for `pixel_values` (B, 3, H, W) float32."""
        arrays: list[npt.NDArray[np.float32]] = [pixels.contiguous().numpy()]
        for stage in self._stages:
            outputs = stage.infer(arrays, share_inputs=True, share_outputs=True)
            arrays = [outputs[i] for i in range(len(outputs))]
        inverse_depth = self._head(torch.from_numpy(arrays[0]))[:, 0]
        metres = inverse_depth_to_metres(inverse_depth, *self._range)
        return DepthEstimatorOutput(predicted_depth=metres)


@cache
def openvino_core() -> Any:
    """Return the one `openvino.Core` of this process.

    Each Core replaces the stack of the thread's signal handlers and puts the one before back when
    it ends. Of two that end in the order of their making, the second puts back the freed stack of
    the first, and the next signal, be it Ctrl-C or the end of a child, is a segmentation fault.
    """
    import openvino

    return openvino.Core()


def openvino_has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor, and does not quietly in float32."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _compiled(
    module: nn.Module,
    traced: list[tuple[int, ...]],
    shapes: list[tuple[int, ...]],
    precision: Precision,
) -> Any:
    """Return an OpenVINO request for inputs of some shapes, from a torch module traced on others.

    Tracing runs the module, so it is done on one image, a white one. What torch gives for it is
    looked at: OpenVINO's LeakyReLU makes a number of NaN, so that its outputs may look sound.

    Raises:
        FloatingPointError: the module gives NaN or infinity.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Not through `openvino.convert_model`, which is this and a message to Intel about it.
    with torch.inference_mode():
        example = tuple(torch.ones(shape) for shape in traced)
        outputs: list[Any] = []
        seen = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        script = torch.jit.trace(module.eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
        seen.remove()
        for output in outputs[0] if isinstance(outputs[0], tuple) else outputs:
            if not bool(output.isfinite().all()):
                raise FloatingPointError("gives NaN or infinity for a white picture")
        decoder = TorchScriptPythonDecoder(script, skip_freeze=True)  # else it runs twice
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({i: list(shape) for i, shape in enumerate(shapes)})
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": 1,  # there is a process on every core
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # or all of them sit on the same core
    }
    return openvino_core().compile_model(model, "CPU", settings).create_infer_request()
