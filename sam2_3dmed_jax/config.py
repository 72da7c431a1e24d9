"""Every setting of the project, as frozen dataclasses with units in the comments.

An experiment is a Python file whose `get_config()` returns an `ExperimentConfig`. On the command line every field is a
flag (`--model.image_size 256`). The end of this file accepts the field names of version 0.1.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DEFAULT_CT_WINDOW = "soft_tissue"  # a name of `volume.intensity.WINDOWS`
DEFAULT_SLICES = 6  # D: slices of a clip


@dataclass(frozen=True)
class HieraConfig:
    """The Hiera trunk (Ryali et al. 2023) as SAM 2 uses it."""

    embed_dim: int = 96  # channels of the first stage; doubled at each stage
    num_heads: int = 1  # heads of the first stage; doubled at each stage
    stages: tuple[int, ...] = (1, 2, 7, 2)  # blocks per stage
    global_att_blocks: tuple[int, ...] = (5, 7, 9)  # indices of the blocks with global attention
    window_spec: tuple[int, ...] = (8, 4, 14, 7)  # side of the attention windows of each stage, in tokens
    pos_embed_size: tuple[int, int] = (7, 7)  # size of the stored background position embedding, in cells


@dataclass(frozen=True)
class Sam2Config:
    """One SAM 2 architecture. The defaults are `sam2.1_hiera_tiny`."""

    trunk: HieraConfig = HieraConfig()
    image_size: int = 1024  # S: side of the square input slice, in pixels; a multiple of 32
    d_model: int = 256  # C: feature channels
    mem_dim: int = 64  # channels of a memory feature map
    memory_attention_layers: int = 4
    memory_attention_ff: int = 2048  # hidden width of the feed-forward layers
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048  # hidden width of the two-way transformer
    num_maskmem: int = 7  # temporal positions of memories: prompted slices share index 0, then 6 recent slices
    max_obj_ptrs: int = 16  # maximum number of object pointers of earlier slices
    max_cond_slices: int | None = None  # maximum number of prompted slices attended to; None: all, as in the reference
    no_obj_embed_spatial: bool = True  # SAM 2.1: add an embedding to memories of slices without the object
    tpos_enc_in_obj_ptrs: bool = True  # SAM 2.1: projected, signed temporal encoding of object pointers
    multimask: bool = True  # `multimask_output_in_sam`: predict three candidates for an ambiguous prompt
    store_memory_bfloat16: bool = False  # as the reference does, even in float32 runs
    compute_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class SrppConfig:
    """Slice relative position prediction (paper, section SRPP). The path to the mask is ours."""

    dim: int = 128  # width of the slice-context Transformer
    layers: int = 2  # its Transformer layers
    heads: int = 4  # its attention heads
    unit: Literal["slice", "mm"] = "slice"  # unit of the targets: slice indices (paper) or millimetres (ours)
    scale: float = 6.0  # divisor of the targets, in `unit`, which makes the loss of order one
    # Slices that the context attends over at inference. None: `data.slices`. Training refuses any other number.
    window: int | None = None
    to_mask: bool = True  # add the context to the mask features (ours); False: a head used only in training (paper)
    memory: bool = False  # predict positions from memory-conditioned features (paper's ablation); not with `to_mask`
    order_embedding: bool = False  # learned embedding of a slice's place in its clip: an alternative to the SRPP loss

    @property
    def context_slices(self) -> int:
        """Slices that the context attends over at inference."""
        return DEFAULT_SLICES if self.window is None else self.window


@dataclass(frozen=True)
class BdConfig:
    """Boundary detection (paper, section BD). The source of the queries and the zero-initialised fusion are ours."""

    dim: int = 64  # width of the cross-attention
    heads: int = 4  # attention heads
    width: int = 3  # width of the boundary target, in pixels of the S x S slice; odd
    normaliser: Literal["balanced", "paper"] = "balanced"  # divisor of the loss: 2 N_bd N_nonbd / N, or N (paper)


@dataclass(frozen=True)
class PreprocessingConfig:
    """From a scan to the encoder's input. Every checkpoint stores it; prediction with another one is an error."""

    # A name of `volume.intensity.WINDOWS`, "LEVEL,WIDTH" in HU, or "LOW%,HIGH%", percentiles of each scan. Windows in
    # HU are for CT: other modalities use the percentiles 0.5% and 99.5% instead.
    window: str = DEFAULT_CT_WINDOW
    modality: str = ""  # ct, mr or pet; "": as the dataset declares, and otherwise CT


@dataclass(frozen=True)
class ModelConfig:
    """SAM 2 from a preset, with the two modules of SAM2-3dMed as switches."""

    preset: str = "sam2.1_hiera_tiny"  # a name of `sam2.presets.PRESETS`
    image_size: int | None = None  # S, in pixels; None: the preset's own
    srpp: bool = True  # add slice relative position prediction
    bd: bool = True  # add boundary detection
    slice_position: SrppConfig = SrppConfig()  # settings of `srpp`
    boundary: BdConfig = BdConfig()  # settings of `bd`
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters stay float32
    init: str = ""  # checkpoint to start from, a path or a name; "": random weights, and everything trains
    kind: Literal["sam2"] = "sam2"  # tells the two model configs apart in JSON files


@dataclass(frozen=True)
class UNetConfig:
    """A residual 3D U-Net like nnU-Net's: a baseline that takes no prompts."""

    patch: tuple[int, int, int] = (64, 128, 128)  # (D, H, W) of a patch, in voxels of `spacing`
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.8)  # (dz, dy, dx) that volumes are resampled to, in mm
    features: int = 32  # channels of the first stage; doubled at each stage
    max_features: int = 320  # maximum number of channels of a stage
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)  # residual blocks per stage; a small patch uses fewer stages
    classes: tuple[int, ...] = ()  # label value of each output except the background; training sets `data.classes`
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters stay float32
    init: str = ""  # path of a native checkpoint to start from; "": random weights
    kind: Literal["unet"] = "unet"  # tells the two model configs apart in JSON files


AnyModelConfig = ModelConfig | UNetConfig


@dataclass(frozen=True)
class PrepareConfig:
    """How `prepare` stores a dataset. The prepared folder records it; another one for the same folder is an error."""

    # (dz, dy, dx) that volumes are resampled to, in mm; None keeps the spacing of each case.
    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    modality: str = ""  # DICOM's code of the scans; "": as the dataset declares, and otherwise CT
    keep_empty: bool = False  # keep cases without a labelled voxel, which are negatives in training


@dataclass(frozen=True)
class SplitConfig:
    """Which cases are held out. `data.fold` chooses the fold."""

    method: Literal["kfold", "80/20"] = "kfold"  # nnU-Net's folds, or the paper's 80/20
    folds: int = 5  # number of folds of `kfold`
    seed: int = 0  # random seed of 80/20; `kfold` uses nnU-Net's
    file: str = ""  # path of nnU-Net's splits_final.json, or of a run's split.json, to use instead of drawing a split
    # Path of a CSV file case,patient that keeps a patient's cases together; "": one case per patient.
    patients: str = ""
    inner_fraction: float = 0.0  # fraction of the training cases held back for validation in the run; 0: none


@dataclass(frozen=True)
class ClipConfig:
    """How a clip is chosen from a case."""

    objects: int = 1  # K: maximum number of objects in a clip
    max_stride: int = 1  # slices between neighbours in a clip, drawn from 1 to max_stride
    reverse_probability: float = 0.5  # clips that run from superior to inferior
    past_end_probability: float = 0.3  # clips that start inside the object and continue past its end
    absent_probability: float = 0.1  # clips whose prompted slice is followed only by slices without the object
    # Other clips that also contain up to D / 2 slices before the prompted slice. These have no loss; with them the
    # prompted slice is inside the window of the slice context, as at inference.
    context_before_probability: float = 0.0
    # Clips of a square region around a voxel of the object, as `predict --zoom` segments. Its side is log-uniform from
    # 64 mm to twice the side of `--zoom auto` for a box around the object. Not with `data.features`.
    zoom_probability: float = 0.0


@dataclass(frozen=True)
class PromptConfig:
    """How a clip's objects are prompted in training."""

    box_prompt_probability: float = 0.2  # prompts that are boxes; the others are points
    random_point_probability: float = 0.5  # points drawn anywhere in the mask; the others are at its centre
    # Points with a second, negative point: in another object of the slice, or else anywhere outside of the object.
    negative_point_probability: float = 0.0
    # Objects that are replaced by an absent one: a point outside of all objects, whose mask is empty on every slice.
    absent_object_probability: float = 0.0


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of training slices and patches. Zero turns a change off."""

    flip_probability: float = 0.0  # clips mirrored left to right, and independently front to back
    rotation: float = 10.0  # maximum in-plane rotation, in degrees (uniform, both directions)
    scaling: float = 0.1  # maximum in-plane scaling, as a fraction (uniform, both directions)
    shift: float = 0.05  # maximum in-plane translation, as a fraction of S (uniform, both directions); not for patches
    intensity: float = 0.05  # maximum change of brightness and contrast, as a fraction (uniform, both directions)
    gamma: float = 0.1  # exponent of the windowed values, from 1 / (1 + gamma) to 1 + gamma (log-uniform)
    noise: float = 0.03  # maximum SD of white noise, as a fraction of the window's width (uniform from 0)


@dataclass(frozen=True)
class PatchConfig:
    """How a U-Net's training patch is chosen from a case."""

    foreground_probability: float = 0.33  # patches centred on a voxel of a class; the others are anywhere


@dataclass(frozen=True)
class DataConfig:
    """Which cases a run trains on, and how clips or patches are cut from them."""

    path: str = ""  # a prepared folder; any other dataset is first prepared into the run's folder
    # Objects to segment, label values or names and unions of them, as `evaluate --classes` takes them: `1=spleen,2+3`,
    # or separate words, (1, "2+3"). (): the ones that `evaluate` prompts, which are each label alone, and an organ
    # together with the tumours inside it.
    classes: tuple[int | str, ...] = ()
    slices: int = DEFAULT_SLICES  # D: slices of a clip
    _: dataclasses.KW_ONLY
    fold: int = 0  # held-out fold, of k-fold or of `split.file`
    split: SplitConfig = SplitConfig()
    clips: ClipConfig = ClipConfig()
    prompts: PromptConfig = PromptConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    patches: PatchConfig = PatchConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    features: str = ""  # folder of cached features of the frozen encoder, computed if missing; "": encode at each step
    workers: int = 2  # threads that cut and augment batches; 0: the training thread does it


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms: a number each, or a schedule `((step, weight), ...)`, linear between its knots."""

    bce: float | tuple[tuple[int, float], ...] = 1.0  # binary cross-entropy of the masks
    ce: float | tuple[tuple[int, float], ...] = 1.0  # cross-entropy over classes; U-Net only
    dice: float | tuple[tuple[int, float], ...] = 1.0  # soft Dice of the masks
    iou: float | tuple[tuple[int, float], ...] = 1.0  # error of the predicted IoU
    object_score: float | tuple[tuple[int, float], ...] = 1.0  # binary cross-entropy of the object score
    srpp: float | tuple[tuple[int, float], ...] = 0.01  # lambda_srpp (paper)
    bd: float | tuple[tuple[int, float], ...] = 0.1  # lambda_bd (paper)


# What the backward pass recomputes instead of storing: nothing, everything except matrix products with weights, or all.
Remat = Literal["none", "dots", "all"]


@dataclass(frozen=True)
class TrainingConfig:
    """The training run."""

    steps: int = 1000  # optimizer steps
    batch_size: int = 4  # B: clips (patches for a U-Net) per step, over all devices and accumulated parts
    accumulation: int = 1  # equal parts of a batch, computed one after the other; the gradient is the whole batch's
    remat_trunk: Remat = "none"  # for each block of the trunk, if it trains; see `Remat`
    remat_slices: Remat = "none"  # for each slice of the propagation through a clip
    ema: float = 0.0  # decay per step of averaged weights, which then become the result; 0: no averaging
    learning_rate: float = 1e-4  # peak, for parameters that `part_learning_rates` does not match
    learning_rate_schedule: str = "warmup_cosine"  # a name of `training.optimizer.SCHEDULES`
    learning_rate_floor: float = 0.01  # end of the cosine decay, as a fraction of the peak
    part_learning_rates: tuple[tuple[str, float], ...] = ()  # (regex on the parameter path, factor)
    # Regexes on parameter paths. None: with `model.init`, the image encoder, the prompt encoder and conv_s0/s1.
    frozen: tuple[str, ...] | None = None
    warmup_steps: int = 50  # steps of the linear warm-up
    weight_decay: float = 0.01  # of AdamW, for kernels only
    adam_betas: tuple[float, float] = (0.9, 0.95)  # decay per step of AdamW's first and second moments
    gradient_clip: float = 1.0  # maximum global norm of the gradient
    checkpoint_every: int = 500  # steps between checkpoints
    keep_checkpoints: int = 2  # newest checkpoints to keep
    log_every: int = 10  # steps between rows of the log
    validate_every: int = 500  # steps between validations on the cases of `data.split.inner_fraction`
    validation_clips: int = 64  # clips or patches of one validation, rounded up to whole batches
    images_every: int = 500  # steps between TensorBoard images; 0: no images, and nothing compiled for them
    loss_limit: float = 100.0  # stop if the loss exceeds this many medians of the last 100 steps; 0: no limit
    seed: int = 0  # random seed of the initial weights and of the batches
    loss: LossConfig = LossConfig()


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh. -1: all devices that the other axis leaves."""

    data: int = -1  # devices that split the batch
    fsdp: int = 1  # devices that split the batch and the parameters


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: what `get_config()` of an experiment file returns."""

    model: AnyModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def replace(self, **changes: object) -> ExperimentConfig:
        """Return a copy with the named parts replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SweepSpec:
    """One sweep: what `get_spec()` of a sweep file returns. Each factor is a tuple of values."""

    checkpoints: tuple[str, ...] = ()  # folders; {fold} and {seed} are replaced by each of `folds` and `seeds`
    data: str = ""  # folder of a dataset in MSD or nnU-Net layout
    folds: tuple[int, ...] = ()  # folds whose held-out cases are scored; (): the fold of each checkpoint's run
    seeds: tuple[int, ...] = ()  # training seeds that replace {seed}
    # Factors. The first value of each is its base value, where curves start.
    prompt: tuple[Literal["point", "box", "mask"], ...] = ("point", "box", "mask")  # kind of the prompt
    placement: tuple[Literal["centre", "random"], ...] = ("centre",)  # position of a point inside the object
    # SD of the noise, along both axes of a point or mask, or of each side of a box.
    noise_mm: tuple[float, ...] = (0.0,)
    misplacement_mm: tuple[float, ...] = (0.0, 2.0, 5.0, 10.0)  # displacement in a random in-plane direction
    neighbour: tuple[bool, ...] = (False,)  # True: prompt the neighbouring organ, or just outside the object
    prompt_of: tuple[Literal["own", "other"], ...] = ("own",)  # other: the prompt of another object of the case
    prompted_slices: tuple[int, ...] = (1,)  # the largest slice, then others evenly over the extent
    order: tuple[Literal["sequential", "independent"], ...] = ("sequential",)  # of the two propagation directions
    bd: tuple[bool, ...] = (True,)  # use boundary detection at inference, if the checkpoint has it
    threshold: tuple[float, ...] = (0.0,)  # logit above which a voxel is inside
    design: Literal["product", "one-at-a-time"] = "product"  # one-at-a-time: the other factors keep their base value
    crossed: tuple[str, ...] = ()  # factors that 'one-at-a-time' combines with all others, such as prompt
    prompt_seed: int = 0  # random seed of placement, noise and directions
    classes: str = ""  # classes to score, as `evaluate --classes`; "": all that the dataset declares
    targets: str = ""  # objects to prompt, as `evaluate --targets`; "": derived from the classes
    tolerance_mm: str = ""  # tolerance of NSD, as `evaluate --tolerance-mm`; "": the task's
    definition: str = "surface-distance"  # of the surface metrics: surface-distance, monai or medpy
    empty: str = "diagonal"  # distances if one mask is empty: diagonal or nan
    metrics: Literal["all", "overlap"] = "all"  # overlap: without surface metrics
    modality: str = ""  # ct, mr or pet; "": as the dataset declares, and otherwise as each checkpoint was trained
    # auto: bfloat16 on TPUs and on GPUs that have it, and float32 elsewhere. A sweep resumes in its own dtype only.
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"


# The field names of version 0.1, accepted with a warning until version 0.3. To drop them, delete the rest of this file
# and the uses of its functions in commands/experiment_files.py, training/run_folder.py and model/checkpoint.py.

EARLIER_NAMES = {
    "data.objects": "data.clips.objects",
    "data.stride": "data.clips.max_stride",
    "data.reverse": "data.clips.reverse_probability",
    "data.beyond": "data.clips.past_end_probability",
    "data.absent": "data.clips.absent_probability",
    "data.box": "data.prompts.box_prompt_probability",
    "data.point_noise": "data.prompts.random_point_probability",
    "data.split": "data.split.method",  # now a group of fields
    "data.folds": "data.split.folds",
    "data.split_seed": "data.split.seed",
    "data.splits": "data.split.file",
    "data.patients": "data.split.patients",
    "data.inner_fraction": "data.split.inner_fraction",
    "data.flip": "data.augmentation.flip_probability",
    "data.rotation": "data.augmentation.rotation",
    "data.scaling": "data.augmentation.scaling",
    "data.shift": "data.augmentation.shift",
    "data.intensity": "data.augmentation.intensity",
    "data.gamma": "data.augmentation.gamma",
    "data.noise": "data.augmentation.noise",
    "data.foreground": "data.patches.foreground_probability",
    "model.slice_position.told_order": "model.slice_position.order_embedding",
    "model.unet.patch": "model.patch",
    "model.unet.spacing": "model.spacing",
    "model.unet.features": "model.features",
    "model.unet.max_features": "model.max_features",
    "model.unet.blocks": "model.blocks",
    "model.unet.classes": "model.classes",
}


class EarlierNameWarning(FutureWarning):
    """A field has the name that it had in version 0.1."""


def upgrade_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's JSON record with the field names of version 0.1 replaced by today's.

    Args:
        record: `dataclasses.asdict` of an `ExperimentConfig` of version 0.1 or later, or some of its parts.
    """
    upgraded = {part: dict(fields) if isinstance(fields, Mapping) else fields for part, fields in record.items()}
    if "model" in upgraded:
        upgraded["model"] = _upgrade_model(upgraded["model"])
    if "data" in upgraded:
        upgraded["data"] = _upgrade_fields(upgraded["data"], "data")
    return upgraded


def _upgrade_model(record: dict[str, Any]) -> dict[str, Any]:
    """Keep the fields of the record's kind of model: records of version 0.1 had the fields of both kinds."""
    unet = record.pop("unet", None)
    if record.get("kind") == "unet":
        return {**unet, **{name: record[name] for name in ("compute_dtype", "init", "kind")}} if unet else record
    if isinstance(srpp := record.get("slice_position"), Mapping):
        record["slice_position"] = _upgrade_fields(dict(srpp), "model.slice_position")
    return record


def _upgrade_fields(record: dict[str, Any], part: str) -> dict[str, Any]:
    """Move each field of version 0.1 to its group."""
    for name in [name for name, value in record.items() if _is_earlier(part, name, value)]:
        value = record.pop(name)
        *group, current = EARLIER_NAMES[f"{part}.{name}"].removeprefix(f"{part}.").split(".")
        if group:
            record[group[0]] = {**record.get(group[0], {}), current: value}
        else:
            record[current] = value
    return record


def _is_earlier(part: str, name: str, value: object) -> bool:
    """Whether a field is of version 0.1; `data.split` was a text then and is a group of fields now."""
    return f"{part}.{name}" in EARLIER_NAMES and not (name == "split" and not isinstance(value, str))


def _warn_of_earlier_name(earlier: str, current: str) -> None:
    warnings.warn(f"{earlier} is now {current}", EarlierNameWarning, stacklevel=3)


def _accept_earlier_keywords(config: type, part: str) -> None:
    """Let the constructor of a config, and so `dataclasses.replace`, accept the field names of version 0.1."""
    constructor = config.__init__  # type: ignore[misc]
    defaults = {each.name: each.default for each in dataclasses.fields(config)}

    @functools.wraps(constructor)
    def accept(self: object, *values: Any, **fields: Any) -> None:
        earlier = {name: fields.pop(name) for name in list(fields) if _is_earlier(part, name, fields[name])}
        for name, value in earlier.items():
            path = EARLIER_NAMES[f"{part}.{name}"]
            _warn_of_earlier_name(f"{part}.{name}", path)
            *group, current = path.removeprefix(f"{part}.").split(".")
            if group:
                fields[group[0]] = dataclasses.replace(fields.get(group[0], defaults[group[0]]), **{current: value})
            else:
                fields[current] = value
        constructor(self, *values, **fields)

    config.__init__ = accept  # type: ignore[misc]


def _new_model_config(config: type[ModelConfig], *values: Any, **fields: Any) -> AnyModelConfig:
    """Version 0.1 had one class for both models: `ModelConfig(kind="unet", unet=UNetConfig(...))`."""
    if fields.get("kind") != "unet":
        return object.__new__(config)
    _warn_of_earlier_name('ModelConfig(kind="unet", unet=UNetConfig(...))', "UNetConfig(...)")
    shared = {name: fields[name] for name in ("compute_dtype", "init") if name in fields}
    return dataclasses.replace(fields.get("unet", UNetConfig()), **shared)  # not a ModelConfig, so this is all


_accept_earlier_keywords(DataConfig, "data")
_accept_earlier_keywords(SrppConfig, "model.slice_position")
ModelConfig.__new__ = _new_model_config  # type: ignore[assignment, method-assign]
