"""Every setting of the project, as frozen dataclasses with units in the comments.

An experiment is a Python file whose `get_config()` returns an `ExperimentConfig`. On the command line every field is a
flag (`--model.image_size 256`). A field with numbers declares their range, which `runtime.config_check` checks. The end
of this file accepts the field names of version 0.1.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

DEFAULT_CT_WINDOW = "soft_tissue"  # a name of `volume.intensity.WINDOWS`
DEFAULT_SLICES = 6  # D: slices of a clip

# Which memories of unprompted slices a slice sees: the last 6 (Meta's rule), the most confident 6 of the last 15, or 6
# of the self-sorting bank of Medical SAM 2. The rules are in `sam2/memory_selection.py`.
MemorySelection = Literal["recent", "confident", "self-sorting"]


@dataclass(frozen=True)
class Range:
    """The values that each number in a field may have, both ends included: `Annotated[int, Range(0, 9)]`."""

    low: float
    high: float

    def __str__(self) -> str:
        """Return the range for messages."""
        return f"{self.low:.10g} to {self.high:.10g}"


@dataclass(frozen=True)
class Regexes:
    """Marks a field whose texts are regular expressions."""


SEEDS = Range(0, 2**32 - 1)  # of NumPy's and JAX's generators


@dataclass(frozen=True)
class HieraConfig:
    """The Hiera trunk (Ryali et al. 2023) as SAM 2 uses it."""

    embed_dim: Annotated[int, Range(1, 4096)] = 96  # channels of the first stage; doubled at each stage
    num_heads: Annotated[int, Range(1, 256)] = 1  # heads of the first stage; doubled at each stage
    stages: Annotated[tuple[int, ...], Range(1, 256)] = (1, 2, 7, 2)  # blocks per stage
    # Indices of the blocks with global attention.
    global_att_blocks: Annotated[tuple[int, ...], Range(0, 1024)] = (5, 7, 9)
    # Side of the attention windows of each stage, in tokens.
    window_spec: Annotated[tuple[int, ...], Range(1, 256)] = (8, 4, 14, 7)
    # Size of the stored background position embedding, in cells.
    pos_embed_size: Annotated[tuple[int, int], Range(1, 256)] = (7, 7)


@dataclass(frozen=True)
class Sam2Config:
    """One SAM 2 architecture. The defaults are `sam2.1_hiera_tiny`."""

    trunk: HieraConfig = HieraConfig()
    image_size: Annotated[int, Range(1, 16384)] = 1024  # S: side of the square input slice, in pixels; a multiple of 32
    d_model: Annotated[int, Range(1, 4096)] = 256  # C: feature channels
    mem_dim: Annotated[int, Range(1, 4096)] = 64  # channels of a memory feature map
    memory_attention_layers: Annotated[int, Range(1, 256)] = 4
    memory_attention_ff: Annotated[int, Range(1, 65536)] = 2048  # hidden width of the feed-forward layers
    decoder_heads: Annotated[int, Range(1, 256)] = 8
    decoder_mlp_dim: Annotated[int, Range(1, 65536)] = 2048  # hidden width of the two-way transformer
    # Temporal positions of memories: prompted slices share index 0, then 6 recent slices.
    num_maskmem: Annotated[int, Range(1, 256)] = 7
    max_obj_ptrs: Annotated[int, Range(1, 1024)] = 16  # maximum number of object pointers of earlier slices
    # Maximum number of prompted slices attended to; None: all, as in the reference.
    max_cond_slices: Annotated[int | None, Range(1, 65535)] = None
    no_obj_embed_spatial: bool = True  # SAM 2.1: add an embedding to memories of slices without the object
    tpos_enc_in_obj_ptrs: bool = True  # SAM 2.1: projected, signed temporal encoding of object pointers
    multimask: bool = True  # `multimask_output_in_sam`: predict three candidates for an ambiguous prompt
    memory_selection: MemorySelection = "recent"  # which memories a slice sees; recent: as the reference
    store_memory_bfloat16: bool = False  # as the reference does, even in float32 runs
    compute_dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class SrppConfig:
    """Slice relative position prediction (paper, section SRPP). The path to the mask is ours."""

    dim: Annotated[int, Range(1, 4096)] = 128  # width of the slice-context Transformer
    layers: Annotated[int, Range(1, 64)] = 2  # its Transformer layers
    heads: Annotated[int, Range(1, 256)] = 4  # its attention heads
    unit: Literal["slice", "mm"] = "slice"  # unit of the targets: slice indices (paper) or millimetres (ours)
    # Divisor of the targets, in `unit`, which makes the loss of order one.
    scale: Annotated[float, Range(1e-6, 1e6)] = 6.0
    # Slices that the context attends over at inference. None: `data.slices`. Training refuses any other number.
    window: Annotated[int | None, Range(1, 65535)] = None
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

    dim: Annotated[int, Range(1, 4096)] = 64  # width of the cross-attention
    heads: Annotated[int, Range(1, 256)] = 4  # attention heads
    width: Annotated[int, Range(1, 255)] = 3  # width of the boundary target, in pixels of the S x S slice; odd
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
    image_size: Annotated[int | None, Range(1, 16384)] = None  # S, in pixels; None: the preset's own
    srpp: bool = True  # add slice relative position prediction
    bd: bool = True  # add boundary detection
    slice_position: SrppConfig = SrppConfig()  # settings of `srpp`
    boundary: BdConfig = BdConfig()  # settings of `bd`
    memory_selection: MemorySelection = "recent"  # memories that a slice sees, in training and at inference
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters stay float32
    init: str = ""  # checkpoint to start from, a path or a name; "": random weights, and everything trains
    kind: Literal["sam2"] = "sam2"  # tells the two model configs apart in JSON files


@dataclass(frozen=True)
class UNetConfig:
    """A residual 3D U-Net like nnU-Net's: a baseline that takes no prompts."""

    # (D, H, W) of a patch, in voxels of `spacing`.
    patch: Annotated[tuple[int, int, int], Range(1, 4096)] = (64, 128, 128)
    # (dz, dy, dx) that volumes are resampled to, in mm.
    spacing: Annotated[tuple[float, float, float], Range(1e-3, 1e3)] = (2.5, 0.8, 0.8)
    features: Annotated[int, Range(1, 4096)] = 32  # channels of the first stage; doubled at each stage
    max_features: Annotated[int, Range(1, 65536)] = 320  # maximum number of channels of a stage
    # Residual blocks per stage; a small patch uses fewer stages.
    blocks: Annotated[tuple[int, ...], Range(1, 64)] = (1, 3, 4, 6, 6, 6)
    # Label value of each output except the background; training sets `data.classes`.
    classes: Annotated[tuple[int, ...], Range(1, 255)] = ()
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters stay float32
    init: str = ""  # path of a native checkpoint to start from; "": random weights
    kind: Literal["unet"] = "unet"  # tells the two model configs apart in JSON files


AnyModelConfig = ModelConfig | UNetConfig


@dataclass(frozen=True)
class PrepareConfig:
    """How `prepare` stores a dataset. The prepared folder records it; another one for the same folder is an error."""

    # (dz, dy, dx) that volumes are resampled to, in mm; None keeps the spacing of each case.
    spacing: Annotated[tuple[float | None, float | None, float | None], Range(1e-3, 1e3)] = (None, None, None)
    modality: str = ""  # DICOM's code of the scans; "": as the dataset declares, and otherwise CT
    keep_empty: bool = False  # keep cases without a labelled voxel, which are negatives in training


@dataclass(frozen=True)
class SplitConfig:
    """Which cases are held out. `data.fold` chooses the fold."""

    method: Literal["kfold", "80/20"] = "kfold"  # nnU-Net's folds, or the paper's 80/20
    folds: Annotated[int, Range(0, 1_000_000)] = 5  # number of folds of `kfold`
    seed: Annotated[int, SEEDS] = 0  # random seed of 80/20; `kfold` uses nnU-Net's
    file: str = ""  # path of nnU-Net's splits_final.json, or of a run's split.json, to use instead of drawing a split
    # Path of a CSV file case,patient that keeps a patient's cases together; "": one case per patient.
    patients: str = ""
    # Fraction of the training cases held back for validation in the run; 0: none.
    inner_fraction: Annotated[float, Range(0, 1)] = 0.0


@dataclass(frozen=True)
class ClipConfig:
    """How a clip is chosen from a case."""

    objects: Annotated[int, Range(1, 255)] = 1  # K: maximum number of objects in a clip
    max_stride: Annotated[int, Range(1, 65535)] = 1  # slices between neighbours in a clip, drawn from 1 to max_stride
    reverse_probability: Annotated[float, Range(0, 1)] = 0.5  # clips that run from superior to inferior
    # Clips that start inside the object and continue past its end.
    past_end_probability: Annotated[float, Range(0, 1)] = 0.3
    # Clips whose prompted slice is followed only by slices without the object.
    absent_probability: Annotated[float, Range(0, 1)] = 0.1
    # Other clips that also contain up to D / 2 slices before the prompted slice. These have no loss; with them the
    # prompted slice is inside the window of the slice context, as at inference.
    context_before_probability: Annotated[float, Range(0, 1)] = 0.0
    # Clips of a square region around a voxel of the object, as `predict --zoom` segments. Its side is log-uniform from
    # 64 mm to twice the side of `--zoom auto` for a box around the object. Not with `data.features`.
    zoom_probability: Annotated[float, Range(0, 1)] = 0.0


@dataclass(frozen=True)
class CorrectionConfig:
    """Corrective clicks in training: points where the prediction is wrong, as in SAM 2's training."""

    # C: maximum number of clicks on a prompted or corrected slice, drawn from 0 to C; 0: no clicks.
    clicks: Annotated[int, Range(0, 12)] = 0
    # Q: maximum number of slices of an object, behind its first prompt, that are corrected when the propagation reaches
    # them, drawn from 0 to Q. They become prompted slices for the memory of later ones.
    corrected_slices: Annotated[int, Range(0, 65535)] = 0
    # Clicks at the deepest point of the error, as careful users do; the others are anywhere in it, as in SAM 2.
    centre_click_probability: Annotated[float, Range(0, 1)] = 0.5


@dataclass(frozen=True)
class PromptConfig:
    """How a clip's objects are prompted in training."""

    box_prompt_probability: Annotated[float, Range(0, 1)] = 0.2  # prompts that are boxes; the others are points
    # Points drawn anywhere in the mask; the others are at its centre.
    random_point_probability: Annotated[float, Range(0, 1)] = 0.5
    # Points with a second, negative point: in another object of the slice, or else anywhere outside of the object.
    negative_point_probability: Annotated[float, Range(0, 1)] = 0.0
    # Objects that are replaced by an absent one: a point outside of all objects, whose mask is empty on every slice.
    absent_object_probability: Annotated[float, Range(0, 1)] = 0.0
    # First prompts that are the mask of the object itself, as from an earlier segmentation, instead of a box or point.
    mask_prompt_probability: Annotated[float, Range(0, 1)] = 0.0
    # P: maximum number of prompted slices of an object, drawn from 1 to P.
    prompted_slices: Annotated[int, Range(1, 65535)] = 1
    corrections: CorrectionConfig = CorrectionConfig()


@dataclass(frozen=True)
class AugmentationConfig:
    """Random changes of training slices and patches. Zero turns a change off."""

    # Clips mirrored left to right, and independently front to back.
    flip_probability: Annotated[float, Range(0, 1)] = 0.0
    rotation: Annotated[float, Range(0, 180)] = 10.0  # maximum in-plane rotation, in degrees (uniform, both directions)
    scaling: Annotated[float, Range(0, 0.9)] = 0.1  # maximum in-plane scaling, as a fraction (uniform, both directions)
    # Maximum in-plane translation, as a fraction of S (uniform, both directions); not for patches.
    shift: Annotated[float, Range(0, 1)] = 0.05
    # Maximum change of brightness and contrast, as a fraction (uniform, both directions).
    intensity: Annotated[float, Range(0, 1)] = 0.05
    # Exponent of the windowed values, from 1 / (1 + gamma) to 1 + gamma (log-uniform).
    gamma: Annotated[float, Range(0, 10)] = 0.1
    # Maximum SD of white noise, as a fraction of the window's width (uniform from 0).
    noise: Annotated[float, Range(0, 1)] = 0.03


@dataclass(frozen=True)
class PatchConfig:
    """How a U-Net's training patch is chosen from a case."""

    # Patches centred on a voxel of a class; the others are anywhere.
    foreground_probability: Annotated[float, Range(0, 1)] = 0.33


@dataclass(frozen=True)
class DataConfig:
    """Which cases a run trains on, and how clips or patches are cut from them."""

    path: str = ""  # a prepared folder; any other dataset is first prepared into the run's folder
    # Objects to segment, label values or names and unions of them, as `evaluate --classes` takes them: `1=spleen,2+3`,
    # or separate words, (1, "2+3"). (): the ones that `evaluate` prompts, which are each label alone, and an organ
    # together with the tumours inside it.
    classes: Annotated[tuple[int | str, ...], Range(1, 255)] = ()
    slices: Annotated[int, Range(1, 65535)] = DEFAULT_SLICES  # D: slices of a clip
    _: dataclasses.KW_ONLY
    fold: Annotated[int, Range(0, 1_000_000)] = 0  # held-out fold, of k-fold or of `split.file`
    split: SplitConfig = SplitConfig()
    clips: ClipConfig = ClipConfig()
    prompts: PromptConfig = PromptConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    patches: PatchConfig = PatchConfig()
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    # D of the clips while training, ((first step, D), ...), steps from 0, such as ((0, 6), (2000, 12)) to start with
    # short clips; the last D is `slices`. Each D compiles the step once. (): always `slices`.
    slices_schedule: Annotated[tuple[tuple[int, int], ...], Range(0, 10**9)] = ()
    features: str = ""  # folder of cached features of the frozen encoder, computed if missing; "": encode at each step
    workers: Annotated[int, Range(0, 1024)] = 2  # threads that cut and augment batches; 0: the training thread does it


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms: a number each, or a schedule `((step, weight), ...)`, linear between its knots."""

    bce: Annotated[float | tuple[tuple[int, float], ...], Range(0, 1e9)] = 1.0  # binary cross-entropy of the masks
    # Focal loss of the masks, in addition to or instead of BCE. SAM 2 uses focal=20 and bce=0, with dice=1.
    focal: Annotated[float | tuple[tuple[int, float], ...], Range(0, 1e9)] = 0.0
    ce: Annotated[float | tuple[tuple[int, float], ...], Range(0, 1e9)] = 1.0  # cross-entropy over classes; U-Net only
    dice: Annotated[float | tuple[tuple[int, float], ...], Range(0, 1e9)] = 1.0  # soft Dice of the masks
    iou: Annotated[float | tuple[tuple[int, float], ...], Range(0, 1e9)] = 1.0  # error of the predicted IoU
    # Binary cross-entropy of the object score.
    object_score: Annotated[float | tuple[tuple[int, float], ...], Range(0, 1e9)] = 1.0
    srpp: Annotated[float | tuple[tuple[int, float], ...], Range(0, 1e9)] = 0.01  # lambda_srpp (paper)
    bd: Annotated[float | tuple[tuple[int, float], ...], Range(0, 1e9)] = 0.1  # lambda_bd (paper)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (LoRA, Hu et al. 2021) of frozen linear layers: `W + alpha / rank * A @ B`; A and B train."""

    rank: Annotated[int, Range(0, 4096)] = 0  # columns of A and rows of B; 0: no adapters
    alpha: Annotated[float, Range(1e-6, 1e6)] = 16.0  # the product A @ B is multiplied by alpha / rank
    # Regexes on paths of linear layers. The default: attention of the image encoder and of memory attention. Layers
    # that `training.unfreeze_stages` trains have no adapters.
    modules: Annotated[tuple[str, ...], Regexes()] = (
        r"^image_encoder\.trunk\.blocks\.\d+\.attn\.",
        r"^memory_attention\.layers\.\d+\.(self_attn|cross_attn_image)\.",
    )

    @property
    def scale(self) -> float:
        """The factor of the product A @ B; 0 without adapters."""
        return self.alpha / self.rank if self.rank else 0.0


# What the backward pass recomputes instead of storing: nothing, everything except matrix products with weights, or all.
Remat = Literal["none", "dots", "all"]


@dataclass(frozen=True)
class TrainingConfig:
    """The training run."""

    steps: Annotated[int, Range(1, 10**9)] = 1000  # optimizer steps
    # B: clips (patches for a U-Net) per step, over all devices and accumulated parts.
    batch_size: Annotated[int, Range(1, 65536)] = 4
    # Equal parts of a batch, computed one after the other; the gradient is the whole batch's.
    accumulation: Annotated[int, Range(1, 65536)] = 1
    remat_trunk: Remat = "none"  # for each block of the trunk, if it trains; see `Remat`
    remat_slices: Remat = "none"  # for each slice of the propagation through a clip
    # Decay per step of averaged weights, which then become the result; 0: no averaging.
    ema: Annotated[float, Range(0, 0.999999)] = 0.0
    # Peak, for parameters that `part_learning_rates` does not match.
    learning_rate: Annotated[float, Range(0, 1e3)] = 1e-4
    learning_rate_schedule: str = "warmup_cosine"  # a name of `training.optimizer.SCHEDULES`
    learning_rate_floor: Annotated[float, Range(0, 1)] = 0.01  # end of the cosine decay, as a fraction of the peak
    # (regex on the parameter path, factor).
    part_learning_rates: Annotated[tuple[tuple[str, float], ...], Range(0, 1e6), Regexes()] = ()
    # Factor per block of the trunk, from the last one to the first; multiplies `part_learning_rates`. 1: none.
    layer_decay: Annotated[float, Range(1e-6, 1)] = 1.0
    # Regexes on parameter paths. None: with `model.init`, the image encoder, the prompt encoder and conv_s0/s1; with
    # `lora`, everything except SRPP and BD.
    frozen: Annotated[tuple[str, ...] | None, Regexes()] = None
    # Last stages of the trunk, with their neck convolutions, that train although frozen.
    unfreeze_stages: Annotated[int, Range(0, 4)] = 0
    lora: LoraConfig = LoraConfig()
    warmup_steps: Annotated[int, Range(0, 10**9)] = 50  # steps of the linear warm-up
    weight_decay: Annotated[float, Range(0, 1e3)] = 0.01  # of AdamW, for kernels only
    # Decay per step of AdamW's first and second moments.
    adam_betas: Annotated[tuple[float, float], Range(0, 0.999999)] = (0.9, 0.95)
    gradient_clip: Annotated[float, Range(1e-12, 1e12)] = 1.0  # maximum global norm of the gradient
    checkpoint_every: Annotated[int, Range(0, 10**9)] = 500  # steps between checkpoints
    keep_checkpoints: Annotated[int, Range(1, 10**6)] = 2  # newest checkpoints to keep
    log_every: Annotated[int, Range(0, 10**9)] = 10  # steps between rows of the log
    # Steps between validations on the cases of `data.split.inner_fraction`.
    validate_every: Annotated[int, Range(0, 10**9)] = 500
    # Clips or patches of one validation, rounded up to whole batches.
    validation_clips: Annotated[int, Range(1, 10**6)] = 64
    # Steps between TensorBoard images; 0: no images, and nothing compiled for them.
    images_every: Annotated[int, Range(0, 10**9)] = 500
    # Stop if the loss exceeds this many medians of the last 100 steps; 0: no limit.
    loss_limit: Annotated[float, Range(0, 1e12)] = 100.0
    seed: Annotated[int, SEEDS] = 0  # random seed of the initial weights and of the batches
    loss: LossConfig = LossConfig()


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh. -1: all devices that the other axis leaves."""

    data: Annotated[int, Range(-1, 10**6)] = -1  # devices that split the batch
    fsdp: Annotated[int, Range(-1, 10**6)] = 1  # devices that split the batch and the parameters


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
    # Folds whose held-out cases are scored; (): the fold of each checkpoint's run.
    folds: Annotated[tuple[int, ...], Range(0, 1_000_000)] = ()
    seeds: Annotated[tuple[int, ...], SEEDS] = ()  # training seeds that replace {seed}
    # Factors. The first value of each is its base value, where curves start.
    prompt: tuple[Literal["point", "box", "mask"], ...] = ("point", "box", "mask")  # kind of the prompt
    placement: tuple[Literal["centre", "random"], ...] = ("centre",)  # position of a point inside the object
    # SD of the noise, along both axes of a point or mask, or of each side of a box.
    noise_mm: Annotated[tuple[float, ...], Range(0, 1e3)] = (0.0,)
    # Displacement in a random in-plane direction.
    misplacement_mm: Annotated[tuple[float, ...], Range(0, 1e3)] = (0.0, 2.0, 5.0, 10.0)
    neighbour: tuple[bool, ...] = (False,)  # True: prompt the neighbouring organ, or just outside the object
    prompt_of: tuple[Literal["own", "other"], ...] = ("own",)  # other: the prompt of another object of the case
    # The largest slice, then others evenly over the extent.
    prompted_slices: Annotated[tuple[int, ...], Range(1, 65535)] = (1,)
    # Corrective clicks per object after the prompt, at the largest error.
    corrections: Annotated[tuple[int, ...], Range(0, 100)] = (0,)
    order: tuple[Literal["sequential", "independent"], ...] = ("sequential",)  # of the two propagation directions
    # Which memories a slice sees; stored: as in the checkpoint.
    memory_selection: tuple[Literal["stored", "recent", "confident", "self-sorting"], ...] = ("stored",)
    bd: tuple[bool, ...] = (True,)  # use boundary detection at inference, if the checkpoint has it
    threshold: Annotated[tuple[float, ...], Range(-1e3, 1e3)] = (0.0,)  # logit above which a voxel is inside
    design: Literal["product", "one-at-a-time"] = "product"  # one-at-a-time: the other factors keep their base value
    crossed: tuple[str, ...] = ()  # factors that 'one-at-a-time' combines with all others, such as prompt
    prompt_seed: Annotated[int, SEEDS] = 0  # random seed of placement, noise and directions
    classes: str = ""  # classes to score, as `evaluate --classes`; "": all that the dataset declares
    targets: str = ""  # objects to prompt, as `evaluate --targets`; "": derived from the classes
    tolerance_mm: str = ""  # tolerance of NSD, as `evaluate --tolerance-mm`; "": the task's
    definition: str = "surface-distance"  # of the surface metrics: surface-distance, monai or medpy
    empty: str = "diagonal"  # distances if one mask is empty: diagonal or nan
    metrics: Literal["all", "overlap"] = "all"  # overlap: without surface metrics
    modality: str = ""  # ct, mr or pet; "": as the dataset declares, and otherwise as each checkpoint was trained
    # auto: bfloat16 on devices that multiply faster in it, else float32. A sweep resumes in its own dtype only.
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

    A record of any other form, from a file that was edited, stays as it is for the check of its types.

    Args:
        record: `dataclasses.asdict` of an `ExperimentConfig` of version 0.1 or later, or some of its parts.
    """
    upgraded = {part: dict(fields) if isinstance(fields, Mapping) else fields for part, fields in record.items()}
    if isinstance(upgraded.get("model"), dict):
        upgraded["model"] = _upgrade_model(upgraded["model"])
    if isinstance(upgraded.get("data"), dict):
        upgraded["data"] = _upgrade_fields(upgraded["data"], "data")
    return upgraded


def _upgrade_model(record: dict[str, Any]) -> dict[str, Any]:
    """Keep the fields of the record's kind of model: records of version 0.1 had the fields of both kinds."""
    unet = record.pop("unet", None)
    if record.get("kind") == "unet":
        shared: dict[str, Any] = {name: record[name] for name in ("compute_dtype", "init", "kind") if name in record}
        return {**unet, **shared} if isinstance(unet, Mapping) else record
    if isinstance(srpp := record.get("slice_position"), Mapping):
        record["slice_position"] = _upgrade_fields(dict(srpp), "model.slice_position")
    return record


def _upgrade_fields(record: dict[str, Any], part: str) -> dict[str, Any]:
    """Move each field of version 0.1 to its group."""
    for name in [name for name, value in record.items() if _is_earlier(part, name, value)]:
        value = record.pop(name)
        *group, current = EARLIER_NAMES[f"{part}.{name}"].removeprefix(f"{part}.").split(".")
        if group:
            others = record.get(group[0])
            record[group[0]] = {**(others if isinstance(others, Mapping) else {}), current: value}
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
