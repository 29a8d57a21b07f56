r"""Fine-tune a published EdgeSAM on your own masks in COCO format.

::

    python -m edgesam_jax.train --config configs/coco_finetune.py --workdir runs/mine \
        --set data.root=DIR data.annotations=FILE

The run starts from ``weights/edge_sam.pth`` (``python -m convert.download edge_sam --output weights``); name another
checkpoint with ``--set train.init_from=CHECKPOINT``.

Expected: depends on the data.  The run ends with the mIoU on at most 50 photos of this data set; score other photos
with ``python -m edgesam_jax.eval``.  Not run here on published weights yet.
"""

from edgesam_jax.config import Config, DataConfig, DistillConfig, EvalConfig, LossConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """RepViT-M1 at 1024 px, ground-truth targets, one refinement point; the IoU head is trained too."""
    return Config(
        name="coco_finetune",
        data=DataConfig(source="coco", batch_size=2, max_prompts=16),
        distill=DistillConfig(
            targets="ground_truth", loss=LossConfig(bce=5.0, dice=5.0, iou=1.0), point_start_masks="best"
        ),
        optim=OptimConfig(
            learning_rate=1e-4, min_learning_rate=1e-5, warmup_steps=100, weight_decay=0.05, clip_norm=0.1
        ),
        train=TrainConfig(steps=2000, checkpoint_every=200, init_from="weights/edge_sam.pth"),
        eval=EvalConfig(images=50),
    )
