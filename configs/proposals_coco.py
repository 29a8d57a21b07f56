r"""Granularity priors: the proposal network learns COCO's boxes, without their classes, on a frozen EdgeSAM.

::

    python -m edgesam_jax.train --config configs/proposals_coco.py --workdir runs/priors \
        --set data.root=DIR train.init_from=CHECKPOINT

Any data source with boxes works.  The schedule is "1x": 12 epochs of train2017 at batch 16, SGD with a learning rate of
0.02 that is divided by 10 after 8 and again after 11 epochs.  Losses and assignment are EfficientDet's: EdgeSAM section
3.2 names focal loss, Huber loss and the schedule, but no numbers (``docs/priors.md``).

Expected (the paper, COCO, centre click): mIoU rises from 48.0 to 54.3.  Not reproduced here yet.
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
        # Objects beyond max_prompts would be trained as background.
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
