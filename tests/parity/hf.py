"""transformers' `Sam2VideoModel` as the reference, with generated weights under its own names.

It agrees with Meta (and with us) only if all objects are prompted on the same slices before the first propagation: it
binarises the memories of all objects on a slice where any object is prompted, and the correction of a propagated slice
does not become a prompted slice. Mask prompts are left out, because it encodes their memory at full size and Meta from
S/4. Boxes are passed as corner points, as in Meta's predictor and transformers' processor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import interpolate
from transformers import Sam2VideoConfig, Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from sam2_3dmed_jax.config import ModelConfig
from tests.parity import generated
from tests.parity.axes import channels_first, channels_last, tokens_first
from tests.parity.scenarios import Scenario, Tracked
from tests.parity.stages import Stages, stage_inputs
from weights_conversion.transformers_config import transformers_config

MATRIX = "shared_image_embedding.positional_embedding"
COPY = "prompt_encoder.shared_embedding.positional_embedding"  # the layout holds this matrix twice


def versions() -> dict[str, str]:
    """Return the versions of the reference."""
    return {"transformers": transformers.__version__, "torch": torch.__version__}


def with_generated_weights(preset: str, size: int, seed: int) -> Any:
    """Return a reference with all weights from `generated.py`."""
    config = transformers_config(ModelConfig(preset=preset, image_size=size))
    config = {key: value for key, value in config.items() if key not in ("architectures", "dtype", "model_type")}
    model = Sam2VideoModel(Sam2VideoConfig(**config)).eval()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    state = generated.weights(shapes, seed)
    state[COPY] = state[MATRIX]
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()}, strict=True)
    return model


def save(model: Any, path: Path) -> None:
    """Write a folder in the format of the hub."""
    model.save_pretrained(path)


class Video:
    """Slices that are encoded once; the session's cache has room for all, or with `encode=False` for one."""

    def __init__(self, model: Any, slices: np.ndarray, encode: bool = True):
        self.model = model
        self.session = Sam2VideoInferenceSession(
            video=torch.from_numpy(np.ascontiguousarray(slices.transpose(0, 3, 1, 2))),
            video_height=slices.shape[1],
            video_width=slices.shape[2],
            dtype=torch.float32,
            max_vision_features_cache_size=len(slices) if encode else 1,
        )

    def track(self, scenario: Scenario) -> Tracked:
        """Run a scenario of one round."""
        (prompts,) = scenario
        session, size = self.session, self.model.image_size
        session.reset_tracking_data()
        slices = sorted({ask.slice for ask in prompts})
        for index in slices:
            for ask in prompts:
                if ask.slice != index:
                    continue
                box = ask.corners(size)
                corners = [] if box is None else [box[:2], box[2:]]
                coords = [*corners, *ask.coords(size)]
                labels = [2, 3][: len(corners)] + ask.labels()
                inputs = {"point_coords": torch.tensor([[coords]]), "point_labels": torch.tensor([[labels]])}
                session.add_point_inputs(session.obj_id_to_idx(ask.object_id), index, inputs)
                session.obj_with_new_inputs.append(ask.object_id)
            with torch.inference_mode():
                self.model(session, frame_idx=index)
        for reverse in (False, True):
            for _ in self.model.propagate_in_video_iterator(session, reverse=reverse):
                pass
        return self._collect()

    def _collect(self) -> Tracked:
        depth, side, count = self.session.num_frames, self.model.image_size // 4, self.session.get_obj_num()
        logits = np.full((1, count, depth, side, side), np.nan, np.float32)
        scores = np.full((1, count, depth), np.nan, np.float32)
        for k in range(count):
            for kind in ("non_cond_frame_outputs", "cond_frame_outputs"):
                for i, out in self.session.output_dict_per_obj[k][kind].items():
                    logits[0, k, i] = out["pred_masks"].squeeze().numpy()
                    scores[0, k, i] = out["object_score_logits"].item()
        return Tracked(logits, scores)


@torch.inference_mode()
def stages(model: Any, seed: int) -> Stages:
    """Return stages on their own, with the names of `meta.stages`; stages that this library merges are left out."""
    size = model.image_size
    inputs = {name: torch.from_numpy(value) for name, value in stage_inputs(size, seed).items()}
    out: dict[str, torch.Tensor] = {}
    encoder, prompt = model.vision_encoder, model.prompt_encoder

    images = channels_first(inputs["images"])
    patches = encoder.backbone.patch_embed(images)  # channels last
    out["patch embedding"] = patches
    out["position"] = encoder.backbone._get_pos_embed(patches.shape[1:3])[0]
    for i, feature in enumerate(encoder.backbone(images).intermediate_hidden_states):
        out[f"Hiera stage {i + 1}"] = feature
    for stride, feature in zip((4, 8, 16), encoder(images).fpn_hidden_states, strict=True):
        out[f"neck stride {stride}"] = channels_last(feature)

    coords, labels, mask = inputs["coords"][:, None], inputs["labels"][:, None], inputs["mask"][:, None]
    sparse, dense = prompt(coords, labels, None, mask)
    out |= {"prompt points": sparse[:, 0], "prompt mask": channels_last(dense)}
    position = model.get_image_wide_positional_embeddings()
    out["prompt image position"] = channels_last(position)[0]

    decoder = model.mask_decoder
    decoder.dynamic_multimask_via_stability = False
    heads = [
        decoder(
            image_embeddings=channels_first(inputs["embedding"]),
            image_positional_embeddings=position.repeat(len(sparse), 1, 1, 1),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            high_resolution_features=[channels_first(inputs["stride4"]), channels_first(inputs["stride8"])],
        )
        for multimask in (False, True)
    ]
    decoder.dynamic_multimask_via_stability = True
    (one, many) = heads
    out["decoder masks"], out["decoder ious"] = (torch.cat([one[i], many[i]], 2)[:, 0] for i in (0, 1))
    out["decoder tokens"] = torch.cat([one[2], many[2]], 2)[:, 0]
    out["decoder score"] = one[3].flatten()
    out["object pointer"] = model.object_pointer_proj(out["decoder tokens"][:, 0])

    masks = interpolate(mask, size=(size, size), mode="bilinear", align_corners=False)
    for name, squashed in (("soft", torch.sigmoid(masks)), ("binarised", (masks > 0).float())):
        memory, place = model.memory_encoder(channels_first(inputs["embedding"]), squashed * 20 - 10)
        absent = model.occlusion_spatial_embedding_parameter
        if absent is not None:
            memory = memory + (inputs["score"] <= 0).float()[:, None, None, None] * absent[..., None, None]
        out[f"memory encoder {name}"] = channels_last(memory)
    out["memory position"] = channels_last(place)[0]

    pointers = inputs["pointers"]
    embedding = channels_first(inputs["embedding"])
    attended = model.memory_attention(
        current_vision_features=tokens_first(inputs["embedding"]),
        memory=torch.cat([inputs["memory"], pointers], 1).transpose(0, 1),
        current_vision_position_embeddings=tokens_first(
            channels_last(encoder.neck.position_encoding(embedding.shape, embedding.device, embedding.dtype))
        ),
        memory_posision_embeddings=inputs["memory position"].transpose(0, 1),
        num_object_pointer_tokens=pointers.shape[1],
    )
    # The result is [1, K, N, C] with its two leading axes exchanged.
    out["memory attention"] = attended.reshape(-1, size // 16, size // 16, attended.shape[-1])
    return {name: value.numpy() for name, value in out.items()}
