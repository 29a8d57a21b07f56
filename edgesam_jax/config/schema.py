"""Experiment configuration: frozen dataclasses, typed overrides, a JSON round trip.

Only the standard library is behind it, so that workers and command lines can read a config without starting JAX.
Every field is part of the public contract of ``--set a.b=c``.  Choices in which the paper and its published code
disagree are named here and explained in ``docs/deviations.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

# ---------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class RepVitConfig:
    """RepViT encoder with the two-level fusion neck (EdgeSAM section 3.1; RepViT, CVPR 2024)."""

    kind: Literal["repvit"] = "repvit"
    widths: tuple[int, ...] = (48, 96, 192, 384)
    depths: tuple[int, ...] = (3, 4, 16, 3)  # blocks per stage, the downsampling block included
    stem_strides: tuple[int, int] = (2, 2)  # (2, 1) doubles every grid: used by the tiny models
    fuse: bool = True  # False: last stage not downsampled, no fusion convolutions
    upsample: Literal["bicubic", "bilinear"] = "bicubic"  # bilinear is what the published exports use
    remat: bool = False  # recompute each block in the backward pass

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding."""
        return self.stem_strides[0] * self.stem_strides[1] * 4


@dataclass(frozen=True)
class VitConfig:
    """SAM's plain ViT image encoder with windowed attention and decomposed relative positions (SAM appendix A)."""

    kind: Literal["vit"] = "vit"
    width: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window_size: int = 14
    patch_size: int = 16
    mlp_ratio: int = 4
    remat: bool = False  # recompute each block in the backward pass

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding."""
        return self.patch_size


@dataclass(frozen=True)
class TinyVitConfig:
    """TinyViT-5M (ECCV 2022): as in MobileSAM, or with EdgeSAM's fusion neck (Table 5c)."""

    kind: Literal["tiny_vit"] = "tiny_vit"
    widths: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 5, 10)  # the first stage is convolutional and has none
    windows: tuple[int, ...] = (7, 7, 14, 7)
    mlp_ratio: int = 4
    fuse: bool = False  # False: the last down-sampling has stride 1, as in MobileSAM; True: kept, and fused
    upsample: Literal["bicubic", "bilinear"] = "bicubic"
    stem_strides: tuple[int, int] = (2, 2)

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding: the stem's, and all down-samplings but the last."""
        return self.stem_strides[0] * self.stem_strides[1] * 2 ** (len(self.widths) - 2)


@dataclass(frozen=True)
class EfficientVitConfig:
    """EfficientViT-B1 (ICCV 2023, MIT HAN lab) as EdgeSAM's student (Table 5c)."""

    kind: Literal["efficient_vit"] = "efficient_vit"
    widths: tuple[int, ...] = (16, 32, 64, 128, 256)  # of the stem and four stages; attention in the last two
    depths: tuple[int, ...] = (1, 2, 3, 3, 4)  # of the last two without the block that halves the grid
    head_dim: int = 16
    expansion: int = 4
    fuse: bool = True  # False: the last stage keeps the grid of the one before
    upsample: Literal["bicubic", "bilinear"] = "bicubic"
    stem_stride: int = 2

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding: the stem's, and all stages' but the last."""
        return self.stem_stride * 2 ** (len(self.widths) - 2)


@dataclass(frozen=True)
class PlainVitConfig:
    """EfficientSAM's ViT-Tiny (width 192) or ViT-Small (384, 6 heads): global attention, no relative positions."""

    kind: Literal["plain_vit"] = "plain_vit"
    width: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: int = 4
    patch_size: int = 16
    trained_grid: int = 14  # cells a side that the positions were learnt on

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding."""
        return self.patch_size


@dataclass(frozen=True)
class ConvEncoderConfig:
    """Small convolutional encoder of the embedded tiny teacher; every stage halves the grid."""

    kind: Literal["conv"] = "conv"
    widths: tuple[int, ...] = (16, 32, 64, 96)
    depths: tuple[int, ...] = (1, 2, 3, 3)  # residual blocks per stage

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding: the last but one stage's."""
        return 2 ** (len(self.widths) - 1)


EncoderConfig = RepVitConfig | VitConfig | TinyVitConfig | EfficientVitConfig | PlainVitConfig | ConvEncoderConfig
STUDENTS = (RepVitConfig, TinyVitConfig, EfficientVitConfig)  # convolutions and batch norms, ``fuse`` and ``upsample``


@dataclass(frozen=True)
class DecoderConfig:
    """SAM's two-way transformer mask decoder (SAM appendix A)."""

    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048
    attention_downsample: int = 2  # inner width of cross attention is embed_dim / this
    num_mask_tokens: int = 4
    tie_cross_keys: bool = False  # from scratch only: key projections of the cross attentions start as the queries'
    lora_rank: int = 0  # > 0: low-rank updates of every q_proj and v_proj (EdgeSAM Table 6), alpha 1


@dataclass(frozen=True)
class ProposalConfig:
    """The region proposal network of the granularity priors (EdgeSAM section 3.2; EfficientDet's numbers)."""

    channels: int = 64
    repeats: int = 3  # rounds of the feature pyramid
    head_convs: int = 3
    scale: float = 4.0  # anchors of scale * stride * 2^(k / octaves), k = 0 .. octaves - 1
    octaves: int = 3
    ratios: tuple[float, ...] = (1.0, 0.5, 2.0)  # height / width
    prior: float = 0.01  # score that every anchor starts with
    iou_positive: float = 0.5
    iou_negative: float = 0.5
    focal_alpha: float = 0.25
    focal_gamma: float = 1.5
    huber_beta: float = 0.1
    box_weight: float = 50.0
    before_nms: int = 1000  # best anchors that are looked at
    nms_iou: float = 0.7  # 1: none, as the published code has it
    kept: int = 100
    min_score: float = 0.05

    @property
    def anchors(self) -> int:
        """Anchors in a cell."""
        return self.octaves * len(self.ratios)


@dataclass(frozen=True)
class SamConfig:
    """A promptable segmentation model: any image encoder, SAM's prompt encoder and mask decoder."""

    encoder: EncoderConfig = field(default_factory=RepVitConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    image_size: int = 1024
    embed_dim: int = 256
    mask_in_chans: int = 16
    position_std: float = 1.0  # of the positional encoding's Gaussian matrix when a model starts from scratch
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters stay float32
    # EfficientSAM has its own decoder and prompts, and photos fill its whole frame, whatever their shape.
    variant: Literal["sam", "efficient_sam"] = "sam"
    proposals: ProposalConfig | None = None  # a region proposal network beside the decoder, for granularity priors

    @property
    def frame(self) -> Literal["pad", "stretch"]:
        """How a photo comes into the model's square frame."""
        return "stretch" if self.variant == "efficient_sam" else "pad"

    @property
    def grid(self) -> int:
        """Side of the image embedding in cells."""
        return self.image_size // self.encoder.stride

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution masks in pixels (4 per embedding cell)."""
        return 4 * self.grid


# ---------------------------------------------------------------------------------------------------- training


SourceName = Literal["scenes", "coco", "images", "tars", "prepared"]


@dataclass(frozen=True)
class MixtureConfig:
    """One data set of several; the fields are those of ``DataConfig``."""

    source: SourceName = "images"
    root: str = ""
    annotations: str = ""
    subset: tuple[str, ...] = ()
    split: str = ""
    unlabelled: Literal["none", "grid", "superpixels"] = "none"
    limit: int = 0
    weight: float = 1.0  # photos drawn from it, relative to the others
    ids: str = ""


@dataclass(frozen=True)
class AugmentConfig:
    """Changes of the photo that teacher and student both see; off by default, as in the published recipe.

    The paper names augmentation as open (section 6).  All need the teacher online: a store holds embeddings of the
    unchanged photos.
    """

    flip: float = 0.0  # probability of mirroring left and right
    scale: float = 0.0  # s: the photo is zoomed by 1 - s to 1 + s; above 1 a window of it fills the frame
    colour: float = 0.0  # s: brightness, contrast and saturation by 1 - s to 1 + s each


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how many prompts each image carries."""

    source: SourceName = "scenes"
    root: str = ""  # folder of the photographs (coco, images), of SA-1B's tars, or that prepare or TFDS wrote
    annotations: str = ""  # COCO-format JSON; empty: found under root
    subset: tuple[str, ...] = ()  # of tars: "sa_000020", or a range "sa_000020..sa_000029"; empty: all
    split: str = ""  # of prepared data; empty: the only one, or "train"
    unlabelled: Literal["none", "grid", "superpixels"] = "none"  # prompts where the photos have no annotations
    batch_size: int = 8  # images per step over all devices
    max_prompts: int = 16  # instances drawn per image, without replacement
    workers: int = 0  # 0: in the main process
    seed: int = 0
    limit: int = 0  # 0: all
    shuffle: bool = True
    shuffle_window: int = 0  # photos shuffled together, for disks that are slow at random places; 0: all
    box_jitter: float = 0.0  # std of corner noise as a share of the side, clipped to 20 px (reference: 0.1, off)
    min_area: float = 0.0  # smallest mask kept, in pixels of the resized frame
    mask_nms: float = 1.0  # masks covered by larger ones to more than this share are dropped; 1: off
    mixture: tuple[
        MixtureConfig, ...
    ] = ()  # not empty: these data sets in place of source, root, annotations, limit, ids
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    embeddings: tuple[str, ...] = ()  # stores of the teacher's embeddings (edgesam_jax.embed); empty: it runs online
    max_bad_share: float = 0.01  # of photos that can't be used, after the first 1,000; beyond it a run stops
    scene_granularity: Literal["all", "objects", "parts"] = "all"  # which instances of a scene count
    scene_difficulty: float = 0.5  # scenes only, 0 to 1: number and hollowness of objects, texture, lack of contrast
    ids: str = ""  # a file with the photos to use, one a line (prepare --sample writes it); empty: all


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms; 0 switches one off (facts, section 6)."""

    bce: float = 5.0
    dice: float = 5.0
    iou: float = 0.0  # squared error of the IoU head against the measured IoU (ground truth) or the teacher's
    attention: float = 0.0  # squared error of the decoder's attention maps
    features: float = 0.0  # squared error of the decoder's upscaled embedding
    query: float = 0.0  # squared error of the hypernetworks' outputs, each scaled to L1 norm 1
    encoder: float = 0.0  # stage-1 feature loss kept on during stage 2; what it is made of:
    pixel: float = 1.0  # squared error, cell by cell
    channel: float = 0.0  # divergence of each channel's softmax over the cells (channel-wise distillation)
    channel_temperature: float = 4.0
    correlation: float = 0.0  # squared error of the cosines between all pairs of cells (structured distillation)
    grouping: float = 0.0  # auxiliary: embedding cells of one object alike; only for training from scratch
    grouping_until: float = 1.0  # share of the run after which grouping stops


@dataclass(frozen=True)
class DistillConfig:
    """What is matched, and the prompt loop (EdgeSAM section 3.2, appendix D; facts, sections 6 and 9)."""

    mode: Literal["encoder_only", "prompt_in_the_loop", "proposals"] = "prompt_in_the_loop"
    targets: Literal["teacher", "ground_truth"] = "teacher"
    loss: LossConfig = field(default_factory=LossConfig)
    rounds: int = 1  # decode rounds after the first; 0 switches the loop off
    rounds_from: float = 0.0  # share of the run from which the loop is on
    points_per_round: int = 1
    start: Literal["box", "point", "box_or_point"] = "box_or_point"
    box_share: float = 0.5  # of box_or_point: the probability of a box (paper and published code: equal)
    coin: Literal["prompt", "batch"] = "prompt"  # paper: each prompt; published code: one coin per batch and device
    point_start: Literal["annotation", "interior"] = "annotation"  # interior: a random pixel of the mask
    box_start_masks: Literal["one", "all"] = "one"  # published code: mask token 0; paper: four granularities
    point_start_masks: Literal["all", "best"] = "all"  # ground truth only; best: the minimum over mask tokens 1 to 3
    loss_over_rounds: Literal["mean", "sum"] = "mean"  # published code: mean; paper's algorithm: sum
    loss_over_prompts: Literal["pooled", "image"] = "pooled"  # each prompt weighs the same, or each image
    sampling: Literal["uniform", "side", "interior"] = "uniform"  # see prompts.sample_disagreement
    min_disagreement: int = 10  # pixels; below this nothing is sampled
    teacher_mask: Literal["hard", "soft"] = "hard"
    temperature: float = 1.0
    mask_feedback: float = 0.0  # probability that a later round also gets the previous mask
    freeze_image_encoder: bool = False
    freeze_prompt_encoder: bool = True
    freeze_mask_decoder: bool = False
    freeze_tokens: bool = False  # paper: IoU and mask tokens frozen; published code trains them
    init_decoder_from_teacher: bool = True


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, or SGD with momentum ``b1``; schedule and clipping (facts, section 6)."""

    learning_rate: float = 1e-3  # after scaling: see scale_by_batch
    min_learning_rate: float = 0.0
    warmup_learning_rate: float = 0.0
    warmup_steps: int = 0
    # unshifted: published stage 1; step: a tenth from each of ``milestones`` on
    schedule: Literal["cosine", "cosine_unshifted", "linear", "constant", "step"] = "cosine"
    scale_by_batch: bool = False  # multiply the three rates by batch_size / 512
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 0.0  # 0: off
    optimizer: Literal["adamw", "sgd"] = "adamw"
    milestones: tuple[float, ...] = ()  # shares of the run


@dataclass(frozen=True)
class TrainConfig:
    """The run itself."""

    steps: int = 1000
    seed: int = 0
    devices: int = 0  # at most so many local devices, 0: all; on CPU that many host devices are made
    log_every: int = 20
    picture_every: int = 500  # 0: never
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    init_from: str = ""  # a checkpoint whose weights start the model
    prompt_chunk: int = 0  # prompts decoded at once per image; 0: all.  Bounds memory and fits the cache
    keep_best: int = 1  # checkpoints kept beside the newest: best by eval's box IoU if eval.every, else by loss
    fork_from: str = ""  # another run, or one of its checkpoints: go on from its whole state, under this config
    nonfinite: Literal["stop", "skip"] = "stop"  # a loss or gradient that is not finite ends the run, or is no update
    profile_steps: int = 0  # so many steps are traced by jax.profiler into WORKDIR/profile
    accumulate: int = 1  # micro-batches per step and device, one after the other; batch_size stays that of a step
    batch_norm: Literal["global", "device"] = "global"  # whose images share statistics; published stage 2: a device's
    peak_tflops: float = 0.0  # of one device, for the MFU in the log; 0: known for usual accelerators, else no MFU


@dataclass(frozen=True)
class EvalConfig:
    """The evaluation that a training run does by itself."""

    every: int = 0  # steps; 0: only at the end
    images: int = 200
    batch_size: int = 2  # images scored at a time: speed only
    refine: int = 2
    seed: int = 0


@dataclass(frozen=True)
class ArmConfig:
    """One run of a study: a name for the table, what it starts from, and overrides of the base config."""

    name: str = ""
    title: str = ""
    init_from: str = ""  # name of an earlier arm
    overrides: tuple[str, ...] = ()  # "a.b=c", as on the command line
    time_from: tuple[str, ...] = ()  # earlier arms: train.steps is set so that this arm takes as long as they together


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = "edgesam"
    model: SamConfig = field(default_factory=SamConfig)
    teacher: str = ""  # checkpoint, published file, or "tiny_teacher" for the embedded one; empty: none
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    study: tuple[ArmConfig, ...] = ()  # not empty: train runs these arms and prints one table
