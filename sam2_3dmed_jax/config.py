"""Every setting of the project, as frozen dataclasses with units in the comments; nothing else.

An experiment is a Python file whose `get_config()` returns an `ExperimentConfig`; on the command line
every field is a flag (`--model.image_size 256`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class HieraConfig:
    """The Hiera trunk (Ryali et al. 2023) as SAM 2 uses it."""

    embed_dim: int = 96  # channels of the first stage; doubled at each stage
    num_heads: int = 1  # heads of the first stage; doubled at each stage
    stages: tuple[int, ...] = (1, 2, 7, 2)  # blocks a stage
    global_att_blocks: tuple[int, ...] = (5, 7, 9)  # indices of the blocks that attend over the whole slice
    window_spec: tuple[int, ...] = (8, 4, 14, 7)  # window side a stage, in tokens
    pos_embed_size: tuple[int, int] = (7, 7)  # the stored background position embedding, in cells


@dataclass(frozen=True)
class Sam2Config:
    """One SAM 2 architecture. Defaults are those of `sam2.1_hiera_tiny`."""

    trunk: HieraConfig = HieraConfig()
    image_size: int = 1024  # S: side of the square slice that the encoder sees, in pixels; a multiple of 32
    d_model: int = 256  # C: channels of the features
    mem_dim: int = 64  # channels of a memory
    memory_attention_layers: int = 4
    memory_attention_ff: int = 2048  # hidden width of its feed-forward layers
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048  # hidden width of the two-way transformer
    num_maskmem: int = 7  # memories: prompted ones share index 0, and 6 recent ones
    max_obj_ptrs: int = 16  # object pointers of the past, at most
    max_cond_slices: int | None = None  # prompted slices attended to; None: all (as the reference)
    no_obj_embed_spatial: bool = True  # 2.1: marks memories of slices without the object
    tpos_enc_in_obj_ptrs: bool = True  # 2.1: projected, signed temporal encoding of object pointers
    multimask: bool = True  # `multimask_output_in_sam`: an ambiguous prompt chooses among three candidates
    store_memory_bfloat16: bool = False  # the reference stores spatial memories in bfloat16 even in float32 runs
    compute_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class SrppConfig:
    """Slice relative position prediction (paper, section SRPP; shared path to the mask: ours)."""

    dim: int = 128  # width of the slice-context Transformer
    layers: int = 2
    heads: int = 4
    unit: Literal["slice", "mm"] = "slice"  # of the targets: slice indices (paper) or millimetres (ours)
    scale: float = 6.0  # targets are divided by this many units, so that the loss is of order one
    window: int = 6  # D: slices the context attends over at inference; training sets it to `data.slices`
    to_mask: bool = True  # the context also enters the mask path (ours); False: a head for training alone (paper)
    memory: bool = False  # read order from features that have seen the memory (paper's ablation); takes `to_mask` False
    told_order: bool = False  # a learned embedding of a slice's place in its clip: an alternative to the SRPP loss


@dataclass(frozen=True)
class BdConfig:
    """Boundary detection (paper, section BD; where the queries come from and the zero-initialised fusion: ours)."""

    dim: int = 64  # width of the cross-attention
    heads: int = 4
    width: int = 3  # of the boundary target, in pixels of the S x S slice (odd)
    normaliser: Literal["balanced", "paper"] = "balanced"  # 2 N_bd N_nonbd / N, or N


@dataclass(frozen=True)
class PreprocessingConfig:
    """From HU to the encoder's input. Stored in every checkpoint; another one at prediction is an error."""

    window: str = "soft_tissue"  # a name of `volume.intensity.WINDOWS`, "LEVEL,WIDTH" in HU, or "LOW%,HIGH%"


@dataclass(frozen=True)
class UNetConfig:
    """A residual 3D U-Net of nnU-Net's kind: a baseline that takes no prompts."""

    patch: tuple[int, int, int] = (64, 128, 128)  # (D, H, W) of a patch, voxels of `spacing`
    spacing: tuple[float, float, float] = (2.5, 0.8, 0.8)  # (dz, dy, dx), mm, that volumes are resampled to
    features: int = 32  # channels of the first stage; doubled at each stage
    max_features: int = 320  # channels of a stage, at most
    blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6)  # residual blocks a stage; as many stages at most
    classes: tuple[int, ...] = ()  # label value of each output but the background's; training sets `data.classes`


@dataclass(frozen=True)
class ModelConfig:
    """Which model: a preset of SAM 2 and the two modules of SAM2-3dMed, each a switch; or a U-Net."""

    preset: str = "sam2.1_hiera_tiny"
    image_size: int | None = None  # S in pixels; None: the preset's own
    srpp: bool = True  # slice relative position prediction
    bd: bool = True  # boundary detection
    slice_position: SrppConfig = SrppConfig()
    boundary: BdConfig = BdConfig()
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    init: str = ""  # a native checkpoint to start from; "": random weights, and everything trains
    kind: Literal["sam2", "unet"] = "sam2"  # a U-Net has only `unet`, `compute_dtype` and `init` of these fields
    unet: UNetConfig = UNetConfig()


@dataclass(frozen=True)
class PrepareConfig:
    """How `prepare` stores a dataset. Kept with what it makes; another one there is an error."""

    spacing: tuple[float | None, float | None, float | None] = (None, None, None)  # (dz, dy, dx), mm; None: the case's


@dataclass(frozen=True)
class DataConfig:
    """Which cases, and how clips are cut from them."""

    path: str = ""  # a folder that `prepare` wrote; any other dataset is prepared first, into the run's folder
    classes: tuple[int, ...] = ()  # label values to segment; (): all declared ones
    slices: int = 6  # D: slices a clip
    objects: int = 1  # K: objects a clip, at most
    split: Literal["kfold", "80/20"] = "kfold"  # of the cases: nnU-Net's folds, or the paper's 80/20
    fold: int = 0  # held-out fold, of k-fold or of the file `splits`
    folds: int = 5
    split_seed: int = 0  # of 80/20; k-fold's is nnU-Net's
    splits: str = ""  # path of nnU-Net's splits_final.json, or of a run's split.json, instead of drawing a split
    patients: str = ""  # path of a CSV file case,patient: a patient's cases stay together; "": a case, a patient
    inner_fraction: float = 0.0  # of the training cases, held back as an inner validation split; 0: train on all
    stride: int = 1  # slices between two neighbours of a clip, at most (drawn from 1..stride)
    reverse: float = 0.5  # fraction of clips walked from superior to inferior
    beyond: float = 0.3  # fraction of clips that start inside the object and are walked past its end
    absent: float = 0.1  # fraction of clips whose prompt is followed by slices without the object only
    box: float = 0.2  # fraction of prompts that are boxes; the rest are points
    point_noise: float = 0.5  # fraction of point prompts drawn at random in the mask instead of at its centre
    flip: float = 0.0  # augmentation: fraction of clips mirrored left to right, and as many front to back
    rotation: float = 10.0  # augmentation: in-plane rotation, degrees (uniform +-)
    scaling: float = 0.1  # augmentation: in-plane scaling, fraction (uniform +-)
    shift: float = 0.05  # augmentation: in-plane translation, fraction of S (uniform +-)
    intensity: float = 0.05  # augmentation: brightness and contrast, fraction (uniform +-)
    gamma: float = 0.1  # augmentation: exponent of the windowed values, 1 / (1 + gamma) to 1 + gamma (log-uniform)
    noise: float = 0.03  # augmentation: SD of white noise, fraction of the window (uniform 0..)
    foreground: float = 0.33  # of a U-Net: fraction of patches about a voxel of a class; the rest lie anywhere
    features: str = ""  # folder of the frozen encoder's features, made where it lacks them; "": encode at each step
    workers: int = 2  # threads that cut and augment batches; 0: none beside the loop's own
    preprocessing: PreprocessingConfig = PreprocessingConfig()


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms. A weight is a number, or a schedule `((step, weight), ...)`, linear between its knots."""

    bce: float | tuple[tuple[int, float], ...] = 1.0
    ce: float | tuple[tuple[int, float], ...] = 1.0  # of a U-Net: cross-entropy over classes
    dice: float | tuple[tuple[int, float], ...] = 1.0
    iou: float | tuple[tuple[int, float], ...] = 1.0
    object_score: float | tuple[tuple[int, float], ...] = 1.0
    srpp: float | tuple[tuple[int, float], ...] = 0.01  # lambda_srpp (paper)
    bd: float | tuple[tuple[int, float], ...] = 0.1  # lambda_bd (paper)


# What the backward pass computes again instead of keeping it: nothing, all but matrix products with weights, or all.
Remat = Literal["none", "dots", "all"]


@dataclass(frozen=True)
class TrainingConfig:
    """The training run."""

    steps: int = 1000
    batch_size: int = 4  # B: clips (of a U-Net, patches) a step, over all devices and parts
    accumulation: int = 1  # equal parts of a batch that are walked one after the other; gradients as of the whole batch
    remat_trunk: Remat = "none"  # of each block of a trunk that trains; see `Remat`
    remat_slices: Remat = "none"  # of each step of the walk over slices
    ema: float = 0.0  # decay a step of averaged weights, which then become the result; 0: none
    learning_rate: float = 1e-4  # peak, of the parts that `part_learning_rates` does not name
    part_learning_rates: tuple[tuple[str, float], ...] = ()  # (regex on the parameter path, factor)
    frozen: tuple[str, ...] | None = (
        None  # regexes; None: image and prompt encoder, conv_s0/s1 when `model.init` is given
    )
    warmup_steps: int = 50
    weight_decay: float = 0.01
    gradient_clip: float = 1.0  # global norm
    checkpoint_every: int = 500  # steps
    keep_checkpoints: int = 2
    log_every: int = 10  # steps
    validate_every: int = 500  # steps between Dice on the inner cases, where `data.inner_fraction` holds some back
    validation_clips: int = 64  # or patches, that it is taken over, rounded up to whole batches
    images_every: int = 500  # steps between TensorBoard images; 0: none, and nothing compiled for them
    loss_limit: float = 100.0  # a loss this many times the median of the last 100 steps stops the run; 0: none does
    seed: int = 0
    loss: LossConfig = LossConfig()


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh. -1: all devices that the other axis leaves."""

    data: int = -1
    fsdp: int = 1


@dataclass(frozen=True)
class ExperimentConfig:
    """One experiment: what `get_config()` of an experiment file returns."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def replace(self, **changes: object) -> ExperimentConfig:
        """A copy with the named parts replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SweepSpec:
    """One sweep: what `get_spec()` of a sweep's file returns. A factor is a tuple of the values that it takes."""

    checkpoints: tuple[str, ...] = ()  # folders; {fold} and {seed} in a path stand for each of `folds` and `seeds`
    data: str = ""  # folder of a dataset in MSD or nnU-Net layout
    folds: tuple[int, ...] = ()  # whose held-out cases are scored; (): those of each checkpoint's own run
    seeds: tuple[int, ...] = ()  # of training runs, for {seed}
    # Factors. The first value of each is its base, from which curves start.
    prompt: tuple[Literal["point", "box", "mask"], ...] = ("point", "box", "mask")
    placement: tuple[Literal["centre", "random"], ...] = ("centre",)  # of a point inside the object
    noise_mm: tuple[float, ...] = (0.0,)  # SD along both axes of a point or mask, or of each side of a box
    misplacement_mm: tuple[float, ...] = (0.0, 2.0, 5.0, 10.0)  # in a random in-plane direction
    neighbour: tuple[bool, ...] = (False,)  # True: onto the neighbouring organ, or just outside of the object
    prompted_slices: tuple[int, ...] = (1,)  # the one with the largest area, and others evenly over the extent
    order: tuple[Literal["sequential", "independent"], ...] = ("sequential",)  # of the directions
    bd: tuple[bool, ...] = (True,)  # with boundary detection at inference, where the checkpoint has it
    threshold: tuple[float, ...] = (0.0,)  # logit above which a voxel is inside
    design: Literal["product", "one-at-a-time"] = "product"  # one-at-a-time: others stay at their base
    crossed: tuple[str, ...] = ()  # factors that 'one-at-a-time' still combines with all else, such as prompt
    prompt_seed: int = 0  # of random placement, noise and directions
    classes: str = ""  # to score, as `evaluate --classes`; "": all declared ones
    targets: str = ""  # objects to prompt, as `evaluate --targets`; "": as the classes tell
    tolerance_mm: str = ""  # of NSD, as `evaluate --tolerance-mm`; "": of the task
    definition: str = "surface-distance"  # of surface metrics: or monai, medpy
    empty: str = "diagonal"  # distances where one mask is empty: or nan
    metrics: Literal["all", "overlap"] = "all"  # overlap: no surface metrics
