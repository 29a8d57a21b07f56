#!/bin/bash
# Fill the store of teacher embeddings under SLURM, one GPU for each part:   sbatch docs/launch/slurm_embed.sh
# The same command again embeds what is missing; another --array=0-N divides the rest anew.
#
#SBATCH --job-name=edgesam-embed
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x.%A_%a.log

DATA=${DATA:-DATA/sa1b_1pct}
STORE=${STORE:-DATA/vit_h}
TEACHER=${TEACHER:-weights/sam_vit_h_4b8939.pth}

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi

exec python -m edgesam_jax.embed --teacher "$TEACHER" --source prepared --root "$DATA" --output "$STORE" \
  --batch-size 4 --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
