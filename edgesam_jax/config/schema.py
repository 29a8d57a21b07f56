"""The fields of an experiment's configuration, as frozen dataclasses.

Every field can be set on the command line with ``--set a.b=c`` and is part of the public interface.  The type of a
numeric field includes the range of its values, which ``rules.check_values`` checks.  Where the paper and its published
code disagree, the field names both choices and ``docs/deviations.md`` explains them.  This module imports the standard
library alone, so data workers and command lines can read a config without importing JAX.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgesam_jax.config.ranges import Count, Natural, NonNegative, Positive, Probability, Seed, Share, ShareBelow1

# ---------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class RepVitConfig:
    """RepViT encoder with the two-level fusion neck (EdgeSAM section 3.1; RepViT, CVPR 2024)."""

    kind: Literal["repvit"] = "repvit"
    widths: tuple[Count, ...] = (48, 96, 192, 384)
    depths: tuple[Natural, ...] = (3, 4, 16, 3)  # blocks per stage, including the down-sampling block
    stem_strides: tuple[Count, Count] = (2, 2)  # (2, 1) doubles the side of every grid, as in the tiny models
    fuse: bool = True  # False: no down-sampling before the last stage and no fusion convolutions
    upsample: Literal["bicubic", "bilinear"] = "bicubic"  # bilinear: as in the published exports
    remat: bool = False  # recompute each block in the backward pass: less memory, more time

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding."""
        return self.stem_strides[0] * self.stem_strides[1] * 4


@dataclass(frozen=True)
class VitConfig:
    """SAM's plain ViT image encoder with windowed attention and decomposed relative positions (SAM appendix A)."""

    kind: Literal["vit"] = "vit"
    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    global_blocks: tuple[Natural, ...] = (2, 5, 8, 11)
    window_size: Natural = 14
    patch_size: Count = 16
    mlp_ratio: Count = 4
    remat: bool = False  # recompute each block in the backward pass: less memory, more time

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding."""
        return self.patch_size


@dataclass(frozen=True)
class TinyVitConfig:
    """TinyViT-5M encoder (ECCV 2022), as in MobileSAM or with EdgeSAM's fusion neck (EdgeSAM Table 5c)."""

    kind: Literal["tiny_vit"] = "tiny_vit"
    widths: tuple[Count, ...] = (64, 128, 160, 320)
    depths: tuple[Natural, ...] = (2, 2, 6, 2)
    heads: tuple[Count, ...] = (
        2,
        4,
        5,
        10,
    )  # attention heads per stage; the first stage is convolutional and ignores its value
    windows: tuple[Count, ...] = (7, 7, 14, 7)  # side of the attention windows per stage, in cells
    mlp_ratio: Count = 4
    # False: the last down-sampling has stride 1, as in MobileSAM; True: it has stride 2, followed by the fusion neck
    fuse: bool = False
    upsample: Literal["bicubic", "bilinear"] = "bicubic"
    stem_strides: tuple[Count, Count] = (2, 2)

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding: the stem and every down-sampling except the last."""
        return self.stem_strides[0] * self.stem_strides[1] * 2 ** (len(self.widths) - 2)


@dataclass(frozen=True)
class EfficientVitConfig:
    """EfficientViT-B1 encoder (ICCV 2023, MIT HAN lab) as a student (EdgeSAM Table 5c)."""

    kind: Literal["efficient_vit"] = "efficient_vit"
    widths: tuple[Count, ...] = (16, 32, 64, 128, 256)  # of the stem and four stages; the last two have attention
    depths: tuple[Natural, ...] = (
        1,
        2,
        3,
        3,
        4,
    )  # blocks; in the last two stages excluding the one that halves the grid
    head_dim: Count = 16
    expansion: Count = 4  # hidden width of an inverted bottleneck / its width
    fuse: bool = True  # False: no down-sampling before the last stage and no fusion convolutions
    upsample: Literal["bicubic", "bilinear"] = "bicubic"
    stem_stride: Count = 2

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding: the stem and every stage except the last."""
        return self.stem_stride * 2 ** (len(self.widths) - 2)


@dataclass(frozen=True)
class PlainVitConfig:
    """EfficientSAM's ViT-Tiny (width 192) or ViT-Small (width 384, 6 heads): global attention, absolute positions."""

    kind: Literal["plain_vit"] = "plain_vit"
    width: Count = 192
    depth: Count = 12
    heads: Count = 3
    mlp_ratio: Count = 4
    patch_size: Count = 16
    trained_grid: Count = 14  # side of the grid on which the position embeddings were trained, in cells

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding."""
        return self.patch_size


@dataclass(frozen=True)
class ConvEncoderConfig:
    """The tiny teacher's small convolutional encoder; every stage halves the grid."""

    kind: Literal["conv"] = "conv"
    widths: tuple[Count, ...] = (16, 32, 64, 96)
    depths: tuple[Natural, ...] = (1, 2, 3, 3)  # residual blocks per stage

    @property
    def stride(self) -> int:
        """Pixels per cell of the output embedding: those of the last stage but one."""
        return 2 ** (len(self.widths) - 1)


EncoderConfig = RepVitConfig | VitConfig | TinyVitConfig | EfficientVitConfig | PlainVitConfig | ConvEncoderConfig
# Encoders with convolutions, batch norms, and the fields ``fuse`` and ``upsample``.
STUDENTS = (RepVitConfig, TinyVitConfig, EfficientVitConfig)


@dataclass(frozen=True)
class DecoderConfig:
    """SAM's two-way transformer mask decoder (SAM appendix A)."""

    depth: Count = 2
    heads: Count = 8
    mlp_dim: Count = 2048
    attention_downsample: Count = 2  # inner width of cross attention: embed_dim / attention_downsample
    num_mask_tokens: Count = 4
    tie_cross_keys: bool = False  # training from scratch: initialise cross-attention key projections as the queries'
    lora_rank: Natural = 0  # rank of LoRA updates to every q_proj and v_proj, alpha 1 (EdgeSAM Table 6); 0: off


@dataclass(frozen=True)
class ProposalConfig:
    """The region proposal network of the granularity priors (EdgeSAM section 3.2), with EfficientDet's values."""

    channels: Count = 64
    repeats: Count = 3  # layers of the bidirectional feature pyramid
    head_convs: Natural = 3  # convolutions in the score head and in the box head
    scale: Positive = 4.0  # side of an anchor: scale * stride * 2^(k / octaves) for k = 0 .. octaves - 1
    octaves: Count = 3
    ratios: tuple[Positive, ...] = (1.0, 0.5, 2.0)  # height / width
    prior: Probability = 0.01  # score of every anchor at initialisation
    iou_positive: Share = 0.5  # anchors with at least this IoU with a box are positive
    iou_negative: Share = 0.5  # anchors with less IoU with every box are negative; those in between are ignored
    focal_alpha: Share = 0.25
    focal_gamma: NonNegative = 1.5
    huber_beta: Positive = 0.1  # box errors beyond this count linearly
    box_weight: NonNegative = 50.0  # of the box loss against the score loss
    before_nms: Count = 1000  # highest-scoring anchors passed to non-maximum suppression
    nms_iou: Share = 0.7  # IoU above which the lower-scoring proposal is suppressed; 1: off, as in the published code
    kept: Count = 100  # maximum number of proposals per photo
    min_score: Share = 0.05  # proposals below this score are dropped

    @property
    def anchors(self) -> int:
        """Anchors per cell."""
        return self.octaves * len(self.ratios)


@dataclass(frozen=True)
class SamConfig:
    """A promptable segmentation model: any image encoder, SAM's prompt encoder and mask decoder."""

    encoder: EncoderConfig = field(default_factory=RepVitConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    image_size: Count = 1024  # side of the square input, in pixels
    embed_dim: Count = 256  # channels of the image embedding
    mask_in_chans: Count = 16  # hidden channels of the mask prompt's encoder
    position_std: Positive = 1.0  # standard deviation of the positional encoding's Gaussian matrix at initialisation
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; parameters stay float32
    # efficient_sam: EfficientSAM's decoder and prompt encoding; photos are stretched to fill the square input
    variant: Literal["sam", "efficient_sam"] = "sam"
    proposals: ProposalConfig | None = None  # region proposal network for granularity priors; None: none

    @property
    def frame(self) -> Literal["pad", "stretch"]:
        """How a photo is fitted into the square input: padded at the bottom or right, or stretched."""
        return "stretch" if self.variant == "efficient_sam" else "pad"

    @property
    def grid(self) -> int:
        """Side of the image embedding, in cells."""
        return self.image_size // self.encoder.stride

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution masks, in pixels (4 per embedding cell)."""
        return 4 * self.grid


# ---------------------------------------------------------------------------------------------------- training


SourceName = Literal["scenes", "coco", "images", "tars", "prepared"]


@dataclass(frozen=True)
class MixtureConfig:
    """One data set of several; the fields have the meaning of those in ``DataConfig``."""

    source: SourceName = "images"
    root: str = ""
    annotations: str = ""
    subset: tuple[str, ...] = ()
    split: str = ""
    unlabelled: Literal["none", "grid", "superpixels"] = "none"
    limit: Natural = 0
    weight: Positive = 1.0  # number of photos drawn from this data set, relative to the others'
    ids: str = ""
    pixel_range: str = "auto"


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of the photos, the same for teacher and student; off by default, as in the published recipe.

    The paper leaves augmentation open (section 6).  Every kind needs the teacher to run online, because a store holds
    embeddings of the unchanged photos.
    """

    flip: Share = 0.0  # probability of mirroring left and right
    scale: ShareBelow1 = (
        0.0  # s: zoom by a factor between 1 - s and 1 + s; above 1 a window of the photo fills the frame
    )
    colour: Share = 0.0  # s: change brightness, contrast and saturation each by a factor between 1 - s and 1 + s


@dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how many prompts each image carries."""

    source: SourceName = "scenes"
    root: str = ""  # folder with the photos (coco, images), SA-1B's tars, or the output of prepare or TFDS
    annotations: str = ""  # COCO-format JSON file; empty: searched for under root
    subset: tuple[str, ...] = ()  # tars to read: names such as sa_000020, or ranges sa_000020..sa_000029; empty: all
    split: str = ""  # of prepared data; empty: the only split, or "train"
    unlabelled: Literal["none", "grid", "superpixels"] = "none"  # source of prompts for photos without annotations
    batch_size: Count = 8  # images per step, over all devices
    max_prompts: Count = 16  # maximum number of instances drawn per image, without replacement
    workers: Natural = 0  # worker processes; 0: load in the main process
    seed: Seed = 0  # of shuffling, drawn instances, augmentation and generated scenes
    limit: Natural = 0  # maximum number of photos or scenes; 0: all
    shuffle: bool = True
    shuffle_window: Natural = 0  # number of photos shuffled together, for disks with slow random access; 0: all
    # standard deviation of noise on box corners, as a fraction of the side, clipped to 20 px (published: 0.1, but off)
    box_jitter: NonNegative = 0.0
    min_area: NonNegative = 0.0  # smaller masks are dropped; in pixels of the resized photo
    mask_nms: Share = 1.0  # masks of which larger ones cover more than this fraction are dropped; 1: off
    # if not empty, these data sets replace source, root, annotations, subset, split, unlabelled, limit, ids and
    # pixel_range
    mixture: tuple[MixtureConfig, ...] = ()
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    embeddings: tuple[str, ...] = ()  # stores of teacher embeddings (edgesam_jax.embed); empty: run the teacher online
    max_bad_share: Share = 0.01  # stop if, after 1,000 photos, more than this fraction can't be used
    scene_granularity: Literal["all", "objects", "parts"] = "all"  # scenes only: which instances to use
    scene_difficulty: Share = 0.5  # scenes only, 0 to 1: more and hollower objects, more texture, less contrast
    ids: str = ""  # file that lists the photos to use, one per line (prepare --sample writes one); empty: all
    pixel_range: str = "auto"  # LO,HI: these values become 0 and 255; auto: 8-bit as they are, 16-bit divided by 257
    # resizing of the photos: Pillow's on uint8, as in prediction, or torch's antialiased on float32 (published code)
    resize: Literal["pillow", "torch"] = "pillow"

    @property
    def photo_dtype(self) -> Literal["uint8", "float32"]:
        """Type of the photos in a batch."""
        return "float32" if self.resize == "torch" else "uint8"


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms; 0 switches a term off (``docs/published_code.md``, "Losses")."""

    bce: NonNegative = 5.0  # binary cross entropy of the masks
    dice: NonNegative = 5.0  # Dice loss of the masks
    iou: NonNegative = (
        0.0  # squared error of the IoU head, against the measured IoU (ground truth) or the teacher's IoU head
    )
    attention: NonNegative = 0.0  # squared error of the decoder's attention maps
    features: NonNegative = 0.0  # squared error of the decoder's upscaled embedding
    query: NonNegative = 0.0  # squared error of the hypernetworks' outputs, each scaled to L1 norm 1
    encoder: NonNegative = 0.0  # the embedding loss of stage 1 as an additional term in stage 2
    # the three terms of the embedding loss
    pixel: NonNegative = 1.0  # squared error, cell by cell
    channel: NonNegative = 0.0  # KL divergence of each channel's softmax over the cells (channel-wise distillation)
    channel_temperature: Positive = 4.0
    correlation: NonNegative = 0.0  # squared error of the cosines between all pairs of cells (structured distillation)
    grouping: NonNegative = 0.0  # auxiliary, for training from scratch: similar embedding cells within an object
    grouping_until: Share = 1.0  # fraction of the run after which the grouping loss is off


@dataclass(frozen=True)
class DistillConfig:
    """What the student is trained to match, and the prompt loop (EdgeSAM section 3.2 and appendix D)."""

    mode: Literal["encoder_only", "prompt_in_the_loop", "proposals"] = "prompt_in_the_loop"
    targets: Literal["teacher", "ground_truth"] = "teacher"
    loss: LossConfig = field(default_factory=LossConfig)
    rounds: Natural = 1  # rounds of the prompt loop after the first; 0: no loop
    rounds_from: Share = 0.0  # fraction of the run after which the loop is on
    points_per_round: Count = 1  # points added to each prompt in a round
    start: Literal["box", "point", "box_or_point"] = "box_or_point"  # prompt of the first round
    box_share: Share = 0.5  # box_or_point: probability of a box (0.5 in the paper and the published code)
    # box_or_point is drawn for each prompt (paper), or once per device and step (published code)
    coin: Literal["prompt", "batch"] = "prompt"
    # first point: the annotation's point, or a random pixel of the mask
    point_start: Literal["annotation", "interior"] = "annotation"
    # masks compared after a box: mask token 0 (published code), or all four mask tokens (paper)
    box_start_masks: Literal["one", "all"] = "one"
    # masks compared after a point: all, or the best of mask tokens 1 to 3 (with ground-truth targets only)
    point_start_masks: Literal["all", "best"] = "all"
    loss_over_rounds: Literal["mean", "sum"] = "mean"  # mean: published code; sum: the paper's algorithm
    loss_over_prompts: Literal["pooled", "image"] = "pooled"  # equal weight for each prompt, or for each image
    # where points are drawn in the disagreement of the masks: see learning.sampling.sample_disagreement
    sampling: Literal["uniform", "side", "interior"] = "uniform"
    min_disagreement: Natural = 10  # no point is drawn if the masks differ in fewer pixels
    teacher_mask: Literal["hard", "soft"] = "hard"  # targets: thresholded masks, or sigmoid(logits / temperature)
    temperature: Positive = 1.0  # divides the student's mask logits in the loss, and the teacher's if soft
    mask_feedback: Share = 0.0  # probability that rounds after the first also get the previous mask as a prompt
    freeze_image_encoder: bool = False
    freeze_prompt_encoder: bool = True
    freeze_mask_decoder: bool = False
    iou_head_only: bool = False  # train the IoU head and nothing else (with loss.iou)
    freeze_tokens: bool = False  # IoU and mask tokens: True: frozen (paper); False: trained (published code)
    init_decoder_from_teacher: bool = True  # start prompt encoder and mask decoder as the teacher's, if they fit


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and clipping (``docs/published_code.md``, "Optimiser and schedules")."""

    learning_rate: NonNegative = 1e-3  # peak, for a batch of 512 if scale_by_batch
    min_learning_rate: NonNegative = 0.0  # at the end of the run
    warmup_learning_rate: NonNegative = 0.0  # at the first step of the warm-up
    warmup_steps: Natural = 0
    # cosine_unshifted counts from step 0, not from the end of the warm-up (published stage 1);
    # step divides the rate by 10 at each of the milestones
    schedule: Literal["cosine", "cosine_unshifted", "linear", "constant", "step"] = "cosine"
    scale_by_batch: bool = False  # multiply the three learning rates by data.batch_size / 512
    b1: ShareBelow1 = 0.9  # AdamW's beta 1, or the momentum of SGD
    b2: ShareBelow1 = 0.999
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.05
    clip_norm: NonNegative = 0.0  # maximum global norm of the gradients; 0: no clipping
    optimizer: Literal["adamw", "sgd"] = "adamw"
    milestones: tuple[Share, ...] = ()  # of the step schedule, as fractions of the run


@dataclass(frozen=True)
class TrainConfig:
    """Length, start, checkpoints and logs of a run."""

    steps: Count = 1000
    seed: Seed = 0  # of initial weights and of draws in the step
    devices: Natural = 0  # maximum number of local devices; 0 uses all.  On CPU, the number of host devices to create
    log_every: Count = 20  # steps
    picture_every: Natural = 500  # steps between pictures of the prompt loop; 0: never
    checkpoint_every: Count = 500  # steps
    keep_checkpoints: Count = 2  # number of newest checkpoints kept
    init_from: str = ""  # checkpoint with the initial weights; empty: none
    prompt_chunk: Natural = 0  # prompts per image decoded at once, to limit memory and fit the cache; 0: all
    keep_best: Natural = 1  # number of best checkpoints also kept: by box IoU if eval.every is set, else by loss
    fork_from: str = ""  # a run, or one of its checkpoints: continue from its full training state under this config
    # a loss or gradient that is not finite ends the run, or skips the update
    nonfinite: Literal["stop", "skip"] = "stop"
    profile_steps: Natural = 0  # number of steps that jax.profiler traces into WORKDIR/profile
    accumulate: Count = 1  # micro-batches that each device computes one after the other; data.batch_size stays per step
    # images that share batch statistics: all of the batch, or those of a device (published stage 2)
    batch_norm: Literal["global", "device"] = "global"
    # of the teacher's activations; checkpoint: as the checkpoint says, float32 for published files
    teacher_dtype: Literal["checkpoint", "float32", "bfloat16"] = "checkpoint"
    peak_tflops: NonNegative = (
        0.0  # of one device, for the MFU in the log; 0: look up the accelerator, no MFU if unknown
    )


@dataclass(frozen=True)
class EvalConfig:
    """The evaluation on held-out examples within a training run."""

    every: Natural = 0  # steps between evaluations; 0: only at the end
    images: Natural = 200  # maximum number of photos or scenes; 0: none (ablate --evaluate: all)
    batch_size: Count = 2  # images scored at a time; affects speed alone
    refine: Natural = 2  # corrective points after the first prompt
    seed: Seed = 0  # of held-out scenes and drawn points
    ids: str = ""  # file that lists the photos of the data set to evaluate on; empty: its first photos


@dataclass(frozen=True)
class ArmConfig:
    """One run of a study: its name, its start, and its overrides of the study's config."""

    name: str = ""  # a valid identifier; also the name of the run's folder
    title: str = ""  # in the table
    init_from: str = ""  # name of an earlier arm whose weights this arm starts from
    overrides: tuple[str, ...] = ()  # each "a.b=c", as after --set
    time_from: tuple[str, ...] = ()  # earlier arms; train.steps is set to take as long as these arms together
    start: bool = False  # where train.init_from is set, those weights take the place of this arm (``derive.started``)
    against: str = ""  # name of an arm; the report says in words how this arm compares with that one


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = "edgesam"
    model: SamConfig = field(default_factory=SamConfig)
    teacher: str = ""  # checkpoint, published file, or "tiny_teacher" for the one in the package; empty: none
    data: DataConfig = field(default_factory=DataConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    study: tuple[ArmConfig, ...] = ()  # if not empty, train runs these arms and prints one table
