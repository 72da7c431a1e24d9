"""Training step: forward and backward pass of the segmentation on one clip, encoded by the frozen encoder in the step.

    python -m experiments.benchmarks.pytorch.training_step [--slices 6] [--size 512] [--dtype bfloat16]

The reference uses the modules of Meta's `sam2` and the same losses; the converter translates its gradients for the
comparison with ours.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.pytorch.references import build, device, load, precision
from experiments.benchmarks.pytorch.side_by_side import SEED, Side, Work, counted, main
from tests.parity import generated
from weights_conversion.convert import convert_checkpoint

FROZEN = r"^image_encoder\.|^sam_prompt_encoder\.|^sam_mask_decoder\.conv_s[01]\."
# Relative errors of the loss, and of all gradients in their norm. Float32: the order of sums differs, over six slices
# that depend on each other. Bfloat16: both sides round to 8 bits at different places, which changes single pixels.
TOLERANCE = {"float32": (1e-4, 2e-3), "bfloat16": (0.05, 0.5)}
VOLUME = 16  # number of slices in the temporal encoding of pointers, on both sides


def clip(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Return grey slices `[D, S, S]` in [0, 1], the mask of a disc on each slice, and a click inside the disc."""
    d, size = options.slices, options.size
    grey = generated.slices(d, size, SEED)[..., 0]
    grey = np.clip(grey * 0.15 + 0.5, 0, 1).astype(np.float32)
    rows, columns = np.mgrid[:size, :size]
    radius = size / 5 - np.arange(d)[:, None, None]
    x, y = 0.45 * size, 0.55 * size
    return grey, (columns - x) ** 2 + (rows - y) ** 2 < radius**2, (x, y)


def theirs(options: argparse.Namespace, folder: Path) -> Side:
    import torch
    from torch.nn import functional

    from sam2_3dmed_jax.model.checkpoint import load_weights, read_info
    from sam2_3dmed_jax.runtime.imagenet import IMAGENET_MEAN, IMAGENET_STD

    model = build(options, folder, options.size)
    model.binarize_mask_from_pts_for_mem_enc = False  # the video predictor does this at inference only
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not re.search(FROZEN, name))
    grey, masks, click = clip(options)
    on = device(options)
    grey, masks = torch.from_numpy(grey).to(on), torch.from_numpy(masks).float()[:, None].to(on)
    mean, sd = (torch.tensor(values, device=on).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    label = torch.ones(1, 1, dtype=torch.int32, device=on)
    points = {"point_coords": torch.tensor([[click]], device=on), "point_labels": label}
    depth = len(grey)

    def propagate() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            _, features, positions, sizes = model._prepare_backbone_features(
                model.forward_image((grey[:, None] - mean) / sd)
            )
        kept: dict[str, dict] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        outputs = []
        for t in range(depth):
            first = t == 0
            one = [x[:, t : t + 1] for x in features]
            prompt = points if first else None
            out, sam, _, _ = model._track_step(
                t, first, one, [x[:, t : t + 1] for x in positions], sizes, prompt, None, kept, VOLUME, False, None
            )
            multimasks, _, ious, _, high, out["obj_ptr"], score = sam
            model._encode_memory_in_output(one, sizes, prompt, t < depth - 1, high, score, out)
            kept["cond_frame_outputs" if first else "non_cond_frame_outputs"][t] = out
            outputs.append((multimasks, ious, score))
        return tuple(torch.cat(x).float() for x in zip(*outputs, strict=True))

    def loss_of(candidates: torch.Tensor, ious: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        size, small = masks.shape[-1], candidates.shape[-1]
        coarse = functional.interpolate(masks, (small, small), mode="bilinear", antialias=True)
        with torch.no_grad():
            bce = functional.binary_cross_entropy_with_logits(
                candidates, coarse.expand_as(candidates), reduction="none"
            )
            inside = candidates.sigmoid()
            both = inside.sum((2, 3)) + coarse.sum((2, 3))
            dice = 1 - (2 * (inside * coarse).sum((2, 3)) + 1) / (both + 1)
            best = (bce.mean((2, 3)) + dice).argmin(1)
            large = functional.interpolate(candidates, (size, size), mode="bilinear") > 0
            either = (large | (masks > 0.5)).sum((2, 3)).clamp(min=1)
            true = (large & (masks > 0.5)).sum((2, 3)) / either
        chosen = functional.interpolate(candidates[torch.arange(depth), best][:, None], (size, size), mode="bilinear")
        inside = chosen.sigmoid()
        dice = 1 - (2 * (inside * masks).sum() + 1) / (inside.sum() + masks.sum() + 1)
        score = functional.binary_cross_entropy_with_logits(scores, torch.ones_like(scores))
        return functional.binary_cross_entropy_with_logits(chosen, masks) + dice + (ious - true).abs().mean() + score

    def run() -> float:
        model.zero_grad()
        with precision(options):
            loss = loss_of(*propagate())
        loss.backward()
        return loss.item()

    def result(loss: float) -> tuple[float, dict[str, np.ndarray]]:
        named = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
        named |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        source, converted = folder / "gradients.pt", folder / "gradients"
        torch.save({"model": named}, source)  # in the format of a checkpoint
        convert_checkpoint(source, converted)
        gradients = load_weights(converted, read_info(converted).model)
        return loss, {path: np.asarray(value) for path, value in gradients.items()}

    return Side(run, counted(run), result)


def ours(options: argparse.Namespace, folder: Path) -> Side:
    import jax

    from sam2_3dmed_jax.config import DataConfig, ExperimentConfig, MeshConfig, ModelConfig, TrainingConfig
    from sam2_3dmed_jax.data.augment import NO_AUGMENTATION
    from sam2_3dmed_jax.data.case_reader import StoredSlices
    from sam2_3dmed_jax.data.clips import clip_shapes
    from sam2_3dmed_jax.model.build import abstract_model
    from sam2_3dmed_jax.runtime.jaxpr_flops import flops
    from sam2_3dmed_jax.sam2.parameters import split
    from sam2_3dmed_jax.training.gradient import global_gradient
    from sam2_3dmed_jax.training.parameter_groups import FROZEN_PRETRAINED, frozen_patterns, partition
    from sam2_3dmed_jax.training.sharding import make_mesh

    grey, masks, click = clip(options)
    d = len(grey)
    data = DataConfig(slices=d, augmentation=NO_AUGMENTATION)
    shapes = clip_shapes(data, options.size, StoredSlices(options.size, options.size, resized=False))
    model = ModelConfig(options.preset, options.size, srpp=False, bd=False, compute_dtype=options.dtype)
    config = ExperimentConfig(model, data, TrainingConfig(batch_size=1, frozen=FROZEN_PRETRAINED), MeshConfig())
    batch = {name: np.zeros((1, *shape), dtype) for name, (shape, dtype) in shapes.items()}
    batch["grey"] = grey[None]  # float32 in [0, 1], of which the window below changes nothing
    batch["window"][0] = 0, 1
    batch["labels"][0], batch["coords"][0, 0, 0] = masks, click
    batch["point_labels"][..., :] = (1, *[-1] * (batch["point_labels"].shape[-1] - 1))
    batch["token_valid"][..., :2] = True
    for name in ("slice_valid", "object_valid", "multimask"):
        batch[name][:] = True
    weights, frozen = partition(split(load(options, folder, options.size))[1], frozen_patterns(FROZEN_PRETRAINED, True))
    gradient = jax.jit(global_gradient(config, abstract_model(model)[0], make_mesh(MeshConfig(), jax.devices()[:1])))
    arguments = jax.device_put((weights, frozen, batch, np.int32(0)))

    def run() -> tuple[float, Any]:
        gradients, losses = jax.block_until_ready(gradient(*arguments))
        return float(losses["loss"]), gradients

    return Side(run, flops(jax.make_jaxpr(gradient)(*arguments)), lambda out: (out[0], jax.device_get(out[1])))


def check(found: tuple, reference: tuple, options: argparse.Namespace) -> str:
    (loss, gradients), (loss_there, there) = found, reference
    length = np.sqrt(sum(float(np.square(there[path], dtype=float).sum()) for path in gradients))
    apart = np.sqrt(sum(float(np.square(g - there[path], dtype=float).sum()) for path, g in gradients.items()))
    errors = abs(loss - loss_there) / abs(loss_there), apart / length
    assert length > 0.1 and all(e <= limit for e, limit in zip(errors, TOLERANCE[options.dtype], strict=True)), errors
    return f"loss {loss:.4f} within {errors[0]:.0e}, gradients within {errors[1]:.0e} of their length"


def name(options: argparse.Namespace) -> str:
    return f"training step, {options.slices} slices, {options.size} px"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="S, pixels; default: %(default)s")
    parser.add_argument("--slices", type=int, default=6, help="D; default: %(default)s")
    sys.exit(main(Work(name, {"float32": 0.6, "bfloat16": 0.7}, ours, theirs, check), parser))
