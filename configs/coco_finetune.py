"""Fine-tune a published EdgeSAM on one's own COCO-format masks: ``--set data.root=DIR data.annotations=FILE``."""

from edgesam_jax.config import Config, DataConfig, DistillConfig, EvalConfig, LossConfig, OptimConfig, TrainConfig


def get_config() -> Config:
    """RepViT-M1 at 1024 px, ground-truth targets, one refinement point; the IoU head learns along."""
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
