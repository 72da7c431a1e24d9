"""Meta's `sam2` video predictor as the reference: built from its own YAML files, on CPU in float32.

The settings that differ from its files are those that `build_sam2_video_predictor` sets (`apply_postprocessing`), the
slice size with both RoPE sizes of memory attention, and `add_all_frames_to_correct_as_cond` (with its default, the next
propagation overwrites a correction; docs/explanation/semantics.md). `sam2.modeling` and `sam2.sam2_video_predictor` do
not import torchvision.
"""

from __future__ import annotations

import contextlib
import io
from collections import OrderedDict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.nn.functional import interpolate

from tests.parity import generated
from tests.parity.axes import channels_first, channels_last, tokens_first, tokens_last
from tests.parity.scenarios import Scenario, Tracked
from tests.parity.stages import Stages, stage_inputs

_LETTER = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}


def versions() -> dict[str, str]:
    """Return the versions of the reference."""
    return {"sam2": metadata.version("sam2"), "torch": torch.__version__}


def build(preset: str, size: int, compiled: bool = False) -> Any:
    """Return a `SAM2VideoPredictor` of a preset at the given slice size, with PyTorch's initial weights.

    With `compiled` it is the class whose parts `torch.compile` compiles at the first call (upstream's `vos_optimized`).
    """
    family, _, name = preset.partition("_hiera_")
    side = size // 16
    overrides = [
        f"++model._target_=sam2.sam2_video_predictor.SAM2VideoPredictor{'VOS' if compiled else ''}",
        f"++model.image_size={size}",
        f"++model.memory_attention.layer.self_attention.feat_sizes=[{side},{side}]",
        f"++model.memory_attention.layer.cross_attention.feat_sizes=[{side},{side}]",
        "++model.add_all_frames_to_correct_as_cond=true",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_via_stability=true",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_delta=0.05",
        "++model.sam_mask_decoder_extra_args.dynamic_multimask_stability_thresh=0.98",
        "++model.binarize_mask_from_pts_for_mem_enc=true",
    ]
    overrides += ["++model.compile_image_encoder=true"] if compiled else []
    GlobalHydra.instance().clear()
    with initialize_config_module("sam2", version_base="1.2"):
        config = compose(f"configs/{family}/{family}_hiera_{_LETTER[name]}.yaml", overrides=overrides)
    OmegaConf.resolve(config)
    return instantiate(config.model, _recursive_=True).eval()


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the official checkpoint."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def with_generated_weights(preset: str, size: int, seed: int, presence: float = 1.0, compiled: bool = False) -> Any:
    """Return a reference with all weights from `generated.py`."""
    model = build(preset, size, compiled)
    state = generated.weights(shapes(model), seed, presence)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return model


def save(model: Any, path: Path) -> None:
    """Write a checkpoint in the official format."""
    torch.save({"model": model.state_dict()}, path)


class Video:
    """Slices that are encoded once; `encode=False` keeps the features of one slice only, as upstream's `init_state`."""

    def __init__(self, model: Any, slices: np.ndarray, encode: bool = True):
        self.model = model
        self.device = next(model.parameters()).device
        self.images = torch.from_numpy(np.ascontiguousarray(slices.transpose(0, 3, 1, 2))).to(self.device)
        with torch.inference_mode():
            self.features = {i: (x[None], model.forward_image(x[None])) for i, x in enumerate(self.images) if encode}

    def track(self, scenario: Scenario) -> Tracked:
        """Run the rounds of a scenario in one session."""
        state, logits, scores = self._state(), [], []
        for prompts in scenario:
            for ask in prompts:
                if ask.mask is not None:
                    self.model.add_new_mask(state, ask.slice, ask.object_id, ask.pixels(self.model.image_size))
                    continue
                coords = ask.coords(self.model.image_size)
                self.model.add_new_points_or_box(
                    state,
                    ask.slice,
                    ask.object_id,
                    points=coords or None,
                    labels=ask.labels() or None,
                    box=ask.corners(self.model.image_size),
                    clear_old_points=ask.box is not None,  # points are added to earlier ones of the slice, as ours are
                )
            for reverse in (False, True):
                with contextlib.redirect_stderr(io.StringIO()):  # tqdm's bars
                    for _ in self.model.propagate_in_video(state, reverse=reverse):
                        pass
            one = self._collect(state)
            logits.append(one[0])
            scores.append(one[1])
        return Tracked(np.stack(logits), np.stack(scores))

    def _state(self) -> dict[str, Any]:
        size = self.model.image_size
        names = ("point_inputs", "mask_inputs", "output_dict", "temp_output_dict", "frames_tracked")
        return {
            **{f"{name}_per_obj": {} for name in names},
            "images": self.images,
            "num_frames": len(self.images),
            "offload_video_to_cpu": False,
            "offload_state_to_cpu": False,
            "video_height": size,
            "video_width": size,
            "device": self.device,
            "storage_device": self.device,
            "cached_features": self.features,
            "constants": {},
            "obj_id_to_idx": OrderedDict(),
            "obj_idx_to_id": OrderedDict(),
            "obj_ids": [],
        }

    def _collect(self, state: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        side, count = self.model.image_size // 4, len(state["obj_ids"])
        logits = np.full((count, len(self.images), side, side), np.nan, np.float32)
        scores = np.full((count, len(self.images)), np.nan, np.float32)
        for k in range(count):
            for kind in ("non_cond_frame_outputs", "cond_frame_outputs"):
                for i, out in state["output_dict_per_obj"][k][kind].items():
                    logits[k, i] = out["pred_masks"][0, 0].float().cpu().numpy()
                    scores[k, i] = out["object_score_logits"].item()
        return logits, scores


@torch.inference_mode()
def stages(model: Any, seed: int) -> Stages:
    """Return every stage on its own, from the same generated inputs, so that errors do not add up."""
    size = model.image_size
    inputs = {name: torch.from_numpy(value) for name, value in stage_inputs(size, seed).items()}
    out: dict[str, torch.Tensor] = {}
    encoder, prompt, decoder = model.image_encoder, model.sam_prompt_encoder, model.sam_mask_decoder

    images = channels_first(inputs["images"])
    patches = encoder.trunk.patch_embed(images)  # channels last
    out["patch embedding"] = patches
    out["position"] = encoder.trunk._get_pos_embed(patches.shape[1:3])[0]
    for i, feature in enumerate(encoder.trunk(images)):
        out[f"Hiera stage {i + 1}"] = channels_last(feature)
    for stride, feature in zip((4, 8, 16), encoder(images)["backbone_fpn"], strict=True):
        out[f"neck stride {stride}"] = channels_last(feature)

    points = (inputs["coords"], inputs["labels"])
    out["prompt points"] = prompt(points, None, None)[0]
    out["prompt box"] = prompt(None, inputs["box"], None)[0]
    out["prompt mask"] = channels_last(prompt(None, None, inputs["mask"][:, None])[1])
    out["prompt image position"] = channels_last(prompt.get_dense_pe())[0]

    sparse, dense = prompt(points, None, inputs["mask"][:, None])
    masks, ious, tokens, score = decoder.predict_masks(
        image_embeddings=channels_first(inputs["embedding"]),
        image_pe=prompt.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=[channels_first(inputs["stride4"]), channels_first(inputs["stride8"])],
    )
    out |= {"decoder masks": masks, "decoder ious": ious, "decoder tokens": tokens, "decoder score": score[:, 0]}
    out["object pointer"] = model.obj_ptr_proj(tokens[:, 0])

    masks = interpolate(inputs["mask"][:, None], size=(size, size), mode="bilinear", align_corners=False)
    for name, clicked in (("soft", False), ("binarised", True)):
        memory, (position,) = model._encode_new_memory(
            current_vision_feats=[tokens_first(inputs["embedding"])],
            feat_sizes=[(size // 16, size // 16)],
            pred_masks_high_res=masks,
            object_score_logits=inputs["score"][:, None],
            is_mask_from_pts=clicked,
        )
        out[f"memory encoder {name}"] = channels_last(memory)
    out["memory position"] = channels_last(position)[0]

    spatial, pointers = inputs["memory"], inputs["pointers"]
    out["memory attention"] = tokens_last(
        model.memory_attention(
            curr=[tokens_first(inputs["embedding"])],
            curr_pos=[tokens_first(channels_last(encoder.neck.position_encoding(channels_first(inputs["embedding"]))))],
            memory=torch.cat([spatial, pointers], 1).transpose(0, 1),
            memory_pos=inputs["memory position"].transpose(0, 1),
            num_obj_ptr_tokens=pointers.shape[1],
        ),
        size // 16,
    )
    return {name: value.numpy() for name, value in out.items()}
