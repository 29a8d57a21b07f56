#!/bin/bash
# Train under SLURM, one task on each GPU:   sbatch docs/launch/slurm.sh
# More hosts:                                sbatch --nodes=4 docs/launch/slurm.sh
# Another stage:   CONFIG=configs/edgesam_stage2.py WORKDIR=runs/edgesam_stage2 sbatch docs/launch/slurm.sh
#
#SBATCH --job-name=edgesam
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=10
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x.%j.log
#
# --signal    two minutes before the time is over every task gets SIGTERM, saves, and leaves with code 143
# --gpus-...  every task sees all GPUs of its host, and JAX takes the one of the task's local number: do not add
#             --gpus-per-task or --gpu-bind, which would renumber them

CONFIG=${CONFIG:-configs/edgesam_stage1.py}
WORKDIR=${WORKDIR:-runs/edgesam_stage1}
DATA=${DATA:-DATA/sa1b_1pct}    # what edgesam_jax.prepare wrote
STORE=${STORE:-DATA/vit_h}      # what edgesam_jax.embed wrote
TEACHER=${TEACHER:-weights/sam_vit_h_4b8939.pth}

cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi

# A task that left is not a reason to kill the others, which may still be saving.  A task that failed is noticed by JAX.
srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
  python -m edgesam_jax.train --config "$CONFIG" --workdir "$WORKDIR" \
  --set data.source=prepared "data.root=$DATA" "data.embeddings=$STORE" "teacher=$TEACHER"
code=$?

# 143 is 128 + SIGTERM: everything is saved, and the same command resumes.  A job that someone cancelled gets the same signal,
# but SLURM no longer calls it running.
if [ "$code" -eq 143 ] && [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then
  echo "saved and left at $(date); queued again"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
