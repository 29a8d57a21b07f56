"""Granularity priors: the proposal network learns COCO's boxes, without their classes, on a frozen EdgeSAM.

The "1x" schedule: 12 epochs of train2017 at batch 16, SGD at 0.02, a tenth of it after 8 and after 11 epochs.  Losses
and assignment are EfficientDet's: EdgeSAM section 3.2 names focal and Huber loss and the schedule, no numbers
(docs/priors.md).
``--set data.root=DIR train.init_from=CHECKPOINT``; every source with boxes will do.
"""

from edgesam_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    DistillConfig,
    EvalConfig,
    OptimConfig,
    ProposalConfig,
    SamConfig,
    TrainConfig,
)

EPOCHS, STEPS_PER_EPOCH = 12, 117_266 // 16


def get_config() -> Config:
    """EdgeSAM at 1024 px."""
    return Config(
        name="proposals_coco",
        model=SamConfig(proposals=ProposalConfig()),
        # Objects beyond max_prompts would count as background.
        data=DataConfig(source="coco", batch_size=16, max_prompts=100, augment=AugmentConfig(flip=0.5)),
        distill=DistillConfig(mode="proposals", targets="ground_truth", init_decoder_from_teacher=False),
        optim=OptimConfig(
            optimizer="sgd", schedule="step", milestones=(8 / EPOCHS, 11 / EPOCHS), learning_rate=0.02,
            warmup_learning_rate=2e-5, warmup_steps=500, b1=0.9, weight_decay=1e-4, clip_norm=10.0,
        ),
        train=TrainConfig(
            steps=EPOCHS * STEPS_PER_EPOCH, checkpoint_every=2000, picture_every=0, init_from="weights/edge_sam.pth"
        ),
        eval=EvalConfig(images=0),
    )  # fmt: skip
