"""What a record holds, by arithmetic alone: no file, no clock, no torch."""

from builder.record.composition import ALPHA_IN_MASK, Pixels
from builder.record.encoder import Encoder
from builder.record.encoding import (
    DepthCodec,
    decode_image,
    decode_image_into,
    decode_instances,
    decode_mask,
    encode_image,
    encode_indexed,
    encode_instances,
    encode_mask,
    encode_rgb,
    mask_pixels,
)
from builder.record.plan import SPLITS, TRAIN, Ids, Plan, SplitPlan, hold_out, hold_out_more
from builder.record.render import Record, Renderer
from builder.record.stats import Statistics, Summary, Tally, histogram, unknown_depth

__all__ = [
    "ALPHA_IN_MASK",
    "SPLITS",
    "TRAIN",
    "DepthCodec",
    "Encoder",
    "Ids",
    "Pixels",
    "Plan",
    "Record",
    "Renderer",
    "SplitPlan",
    "Statistics",
    "Summary",
    "Tally",
    "decode_image",
    "decode_image_into",
    "decode_instances",
    "decode_mask",
    "encode_image",
    "encode_indexed",
    "encode_instances",
    "encode_mask",
    "encode_rgb",
    "histogram",
    "hold_out",
    "hold_out_more",
    "mask_pixels",
    "unknown_depth",
]
