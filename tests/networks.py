"""Tiny networks that mark what is red, and photographs of red things: no weights are downloaded.

Their parts are random, as their configs make them; only the last layer is fitted, by least squares,
to photographs whose truth is known, so that what they find can be asserted.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from builder.cutout.shapes import grown

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
LABELS = {0: "cat", 1: "dog, domestic dog", 2: "kite"}
RED = (200, 40, 30)
TEXT = "red thing"  # that CLIPSeg is fitted to


def scene(
    seed: int = 0,
    size: tuple[int, int] = (240, 180),
    ellipses: list[tuple[float, float, float, float]] | None = None,
) -> tuple[Image.Image, np.ndarray]:
    """A red thing before a background of many colours, and its alpha, 0 to 1.

    Ellipses are (x, y, half width, half height) in shares of the sides.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    at = rng.uniform(-0.06, 0.06, 2)
    alpha = np.zeros((height, width))
    for cx, cy, rx, ry in ellipses or [(0.5 + at[0], 0.5 + at[1], 0.24, 0.28)]:
        far = np.hypot((x - cx * width) / (rx * width), (y - cy * height) / (ry * height))
        alpha = np.maximum(alpha, np.clip((1 - far) * min(rx * width, ry * height) + 0.5, 0, 1))
    wave = np.sin(x / 17 + seed) + np.cos(y / 23)
    back = np.stack([60 + 20 * wave, 130 + 40 * wave, 150 - 45 * np.cos(x / 31)], -1)
    mixed = alpha[..., None] * np.array(RED) + (1 - alpha[..., None]) * back
    mixed += rng.normal(0, 2, mixed.shape)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)), alpha


def inputs(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """A photograph as the networks here take it, in a width and height."""
    small = np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2))
    values = (small / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(values).permute(2, 0, 1)[None].float()


def known(alpha: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """What of alpha is sure, as a matting network is given it: 0, 1, or 0.5 between."""
    small = np.asarray(Image.fromarray((alpha * 255).astype(np.uint8)).resize(size)) >= 128
    band = grown(small, 5) & grown(~small, 5)
    return torch.from_numpy(np.where(band, 0.5, small))[None, None].float()


def fit(network: Any, layer: Any, size: tuple[int, int], trimap: bool = False, **more: Any) -> None:
    """Fit the first channel of a convolution to say what is red: 8 there, and -8 elsewhere."""
    seen: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _module, given, _out: seen.append(given[0]))
    rows, wanted = [], []
    for seed in range(6):
        image, alpha = scene(100 + seed)
        given = inputs(image, size)
        if trimap:
            given = torch.cat([given, known(alpha, size)], 1)
        with torch.inference_mode():
            network(pixel_values=given, **more)
        features = seen[-1][0].double()
        height, width = features.shape[-2:]
        truth = Image.fromarray((alpha * 255).astype(np.uint8)).resize((width, height))
        rows.append(features.reshape(len(features), -1).T)
        wanted.append(torch.from_numpy(np.where(np.asarray(truth) >= 128, 8.0, -8.0)).reshape(-1))
    hook.remove()
    basis = torch.cat([torch.cat(rows), torch.ones(sum(map(len, rows)), 1)], 1)
    square = basis.T @ basis + 1e-6 * torch.eye(basis.shape[1])
    found = torch.linalg.solve(square, basis.T @ torch.cat(wanted)).float()
    with torch.no_grad():
        if isinstance(layer, torch.nn.ConvTranspose2d):
            layer.weight[:] = found[:-1].reshape(-1, 1, 1, 1)
        else:
            layer.weight[0] = found[:-1].reshape(layer.weight[0].shape)
        layer.bias[0] = found[-1]


def fix(layer: torch.nn.Linear, values: list[float]) -> None:
    """Make a layer give the same whatever comes in."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.bias[: len(values)] = torch.tensor(values)


def save(network: Any, folder: Path, settings: dict[str, Any]) -> Path:
    """Save a network with the settings of its pixels."""
    network.save_pretrained(folder)
    stated = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
              "image_mean": MEAN, "image_std": STD} | settings  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(stated))
    return folder


SWIN: dict[str, Any] = {
    "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2],
    "window_size": 4, "out_features": ["stage1", "stage2", "stage3", "stage4"],
}  # fmt: skip
ASPECT = {"size": {"shortest_edge": 96, "longest_edge": 128}}


def labelled() -> dict[str, Any]:
    return {"id2label": LABELS, "label2id": {name: number for number, name in LABELS.items()}}


def mask2former(folder: Path) -> Path:
    torch.manual_seed(0)
    swin = transformers.SwinConfig(**SWIN)
    network = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(
            backbone_config=swin, feature_size=32, mask_feature_size=32, hidden_dim=32,
            encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2,
            dim_feedforward=32, num_queries=3, **labelled(),
        )
    ).eval()  # fmt: skip
    last = network.model.transformer_module.decoder.mask_predictor.mask_embedder
    fix([part for part in last.modules() if isinstance(part, torch.nn.Linear)][-1], [1.0])
    fix(network.class_predictor, [0, 9.0])
    fit(network, network.model.pixel_level_module.decoder.mask_projection, (128, 96))
    return save(network, folder, ASPECT)


def rf_detr(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = {
        "model_type": "rf_detr_dinov2", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 96, "patch_size": 8,
        "num_windows": 1, "out_features": ["stage1", "stage2"],
    }  # fmt: skip
    network = transformers.RfDetrForInstanceSegmentation(
        transformers.RfDetrConfig(
            backbone_config=backbone, d_model=32, decoder_layers=1, decoder_ffn_dim=32,
            decoder_self_attention_heads=2, decoder_cross_attention_heads=2, num_queries=4,
            group_detr=1, intermediate_size=32, **labelled(),
        )
    ).eval()  # fmt: skip
    fix(network.query_features_proj, [1.0])
    fix(network.model.class_embed, [-9, 9.0, -9])
    fit(network, network.spatial_features_proj, (96, 96))
    return save(network, folder, {"size": {"height": 96, "width": 96}})


def segformer(folder: Path) -> Path:
    torch.manual_seed(0)
    network = transformers.SegformerForSemanticSegmentation(
        transformers.SegformerConfig(
            depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 16, 16], num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
            id2label={0: "kite", 1: "background"}, label2id={"kite": 0, "background": 1},
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        network.decode_head.classifier.weight.zero_()
        network.decode_head.classifier.bias.zero_()
    fit(network, network.decode_head.classifier, (128, 128))
    return save(network, folder, {"size": {"height": 128, "width": 128}})


def vitmatte(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = transformers.VitDetConfig(
        num_channels=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=64,
        patch_size=16, out_features=["stage1"],
    )  # fmt: skip
    network = transformers.VitMatteForImageMatting(
        transformers.VitMatteConfig(
            backbone_config=backbone, hidden_size=16, convstream_hidden_sizes=[8, 8, 8],
            fusion_hidden_sizes=[16, 8, 8, 8],
        )
    ).eval()  # fmt: skip
    fit(network, network.decoder.matting_head.matting_convs[-1], (128, 96), trimap=True)
    return save(network, folder, {"size_divisor": 32})


def sam(folder: Path) -> Path:
    torch.manual_seed(0)
    vision = transformers.SamVisionConfig(
        hidden_size=16, output_channels=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=128, patch_size=16, mlp_dim=32, window_size=4, global_attn_indexes=[0],
        num_pos_feats=8,
    )  # fmt: skip
    network = transformers.SamModel(
        transformers.SamConfig(
            vision_config=vision,
            prompt_encoder_config={"hidden_size": 16, "image_size": 128, "patch_size": 16,
                                   "mask_input_channels": 4},
            mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2,
                                 "num_hidden_layers": 1, "iou_head_hidden_dim": 16},
        )
    ).eval()  # fmt: skip
    return save(network, folder, {"size": {"longest_edge": 128},
                                  "pad_size": {"height": 128, "width": 128}})  # fmt: skip


def tokenizer(folder: Path) -> int:
    """Write one that reads letters into a folder; return how many of them it knows."""
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    known = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(known)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    transformers.CLIPTokenizer(*files).save_pretrained(folder)
    return len(known)


def clipseg(folder: Path) -> Path:
    torch.manual_seed(0)
    n_words = tokenizer(folder)
    network = transformers.CLIPSegForImageSegmentation(
        transformers.CLIPSegConfig(
            text_config={"vocab_size": n_words, "hidden_size": 16, "intermediate_size": 16,
                         "num_hidden_layers": 1, "num_attention_heads": 2,
                         "max_position_embeddings": 77, "bos_token_id": n_words - 2,
                         "eos_token_id": n_words - 1},
            vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
                           "num_attention_heads": 2, "image_size": 64, "patch_size": 8},
            projection_dim=16, reduce_dim=16, extract_layers=[0, 1], decoder_num_attention_heads=2,
            decoder_intermediate_size=16, conditional_layer=0,
        )
    ).eval()  # fmt: skip
    read = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = read([TEXT], padding="max_length", max_length=77, return_tensors="pt")
    given = {key: tokens[key] for key in ("input_ids", "attention_mask")}
    fit(network, network.decoder.transposed_convolution, (64, 64), **given)
    return save(network, folder, {"size": {"height": 64, "width": 64}})


def eomt(folder: Path) -> Path:
    torch.manual_seed(0)
    network = transformers.EomtForUniversalSegmentation(
        transformers.EomtConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            num_blocks=1, image_size=64, patch_size=8, num_upscale_blocks=1, num_queries=3,
            num_register_tokens=1, **labelled(),
        )
    ).eval()  # fmt: skip
    fix(network.class_predictor, [0, 9.0])
    size = {"shortest_edge": 64, "longest_edge": 64}
    return save(network, folder, {"size": size, "do_pad": True})


def maskformer(folder: Path) -> Path:
    torch.manual_seed(0)
    decoder = transformers.DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=3,
    )  # fmt: skip
    network = transformers.MaskFormerForInstanceSegmentation(
        transformers.MaskFormerConfig(
            backbone_config=transformers.SwinConfig(**SWIN), decoder_config=decoder,
            fpn_feature_size=32, mask_feature_size=32, **labelled(),
        )
    ).eval()  # fmt: skip
    fix(network.class_predictor, [0, 9.0])
    return save(network, folder, ASPECT)


def oneformer(folder: Path) -> Path:
    torch.manual_seed(0)
    network = transformers.OneFormerForUniversalSegmentation(
        transformers.OneFormerConfig(
            backbone_config=transformers.SwinConfig(**SWIN), hidden_dim=32, mask_dim=32,
            conv_dim=32, encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2,
            num_attention_heads=2, dim_feedforward=32, num_queries=4, query_dec_layers=1,
            text_encoder_vocab_size=tokenizer(folder), text_encoder_width=32,
            text_encoder_num_layers=1, is_training=False, **labelled(),
        )
    ).eval()  # fmt: skip
    fix(network.model.transformer_module.decoder.class_embed, [0, 9.0])
    return save(network, folder, ASPECT)


def detr(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    network = transformers.DetrForSegmentation(
        transformers.DetrConfig(
            backbone_config=backbone, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
            decoder_ffn_dim=32, num_queries=3, **labelled(),
        )
    ).eval()  # fmt: skip
    fix(network.detr.class_labels_classifier, [0, 9.0])
    return save(network, folder, ASPECT)


def sam2(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "blocks_per_stage": [1] * 4,
        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1] * 4,
        "image_size": [128, 128], "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [],
    }  # fmt: skip
    network = transformers.Sam2Model(
        transformers.Sam2Config(
            vision_config={"backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
                           "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
                           "fpn_hidden_size": 16},
            prompt_encoder_config={"hidden_size": 16, "image_size": 128, "patch_size": 16,
                                   "mask_input_channels": 4},
            mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2,
                                 "num_hidden_layers": 1, "iou_head_hidden_dim": 16},
        )
    ).eval()  # fmt: skip
    return save(network, folder, {"size": {"height": 128, "width": 128}})


def sam3(folder: Path) -> Path:
    torch.manual_seed(0)
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 112, "patch_size": 14,
        "window_size": 4, "pretrain_image_size": 56, "global_attn_indexes": [1],
    }  # fmt: skip
    small = {"hidden_size": 16, "num_attention_heads": 2}
    layer = small | {"num_layers": 1, "intermediate_size": 32}
    n_words = tokenizer(folder)
    network = transformers.Sam3Model(
        transformers.Sam3Config(
            vision_config={"backbone_config": backbone, "fpn_hidden_size": 16,
                           "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]]},
            text_config=small | {"vocab_size": n_words, "intermediate_size": 32,
                                 "num_hidden_layers": 1, "projection_dim": 16,
                                 "max_position_embeddings": 32, "bos_token_id": n_words - 2,
                                 "eos_token_id": n_words - 1},
            geometry_encoder_config=layer, detr_encoder_config=layer,
            detr_decoder_config=layer | {"num_queries": 4},
            mask_decoder_config=small | {"num_upsampling_stages": 2},
        )
    ).eval()  # fmt: skip
    return save(network, folder, {"size": {"height": 112, "width": 112}})


def sapiens2(folder: Path) -> Path:
    torch.manual_seed(0)
    head = {"upsample_out_channels": [16, 16, 8, 8], "upsample_kernel_sizes": [4] * 4,
            "conv_out_channels": [8], "conv_kernel_sizes": [1]}  # fmt: skip
    network = transformers.Sapiens2ForImageMatting(
        transformers.Sapiens2Config(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=[64, 48],
            patch_size=16, num_labels=4, head_config=head,
        )
    ).eval()  # fmt: skip
    return save(network, folder, {"size": {"height": 64, "width": 48}})


MAKERS: dict[str, Callable[[Path], Path]] = {
    "mask2former": mask2former,
    "rf_detr": rf_detr,
    "segformer": segformer,
    "vitmatte": vitmatte,
    "sam": sam,
    "clipseg": clipseg,
    "eomt": eomt,
    "maskformer": maskformer,
    "oneformer": oneformer,
    "detr": detr,
    "sam2": sam2,
    "sam3": sam3,
    "sapiens2": sapiens2,
}
