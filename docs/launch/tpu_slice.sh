#!/bin/bash
# Train on all hosts of a Cloud TPU slice:   TPU=my-slice ZONE=us-east5-a docs/launch/tpu_slice.sh
#
# The same command runs on every host (--worker=all).  They share WORKDIR, DATA and STORE: put these on a file system
# that all have mounted at the same place (Filestore, or a bucket by Cloud Storage FUSE).  The first time, on all hosts:
#   git clone REPOSITORY-URL edgesam_jax && cd edgesam_jax && python3 -m venv .venv
#   .venv/bin/python -m pip install -e . && .venv/bin/python -m pip install -U 'jax[tpu]'
# Start it in a session that survives disconnection (tmux).  After a failure or preemption run it again to resume.
set -euo pipefail
: "${TPU:?the name of the slice}" "${ZONE:?the zone of the slice}"
CODE=${CODE:-edgesam_jax}       # folder of the repository on every host
SHARED=${SHARED:-/mnt/shared}
CONFIG=${CONFIG:-configs/edgesam_stage1.py}
WORKDIR=${WORKDIR:-$SHARED/runs/edgesam_stage1}
DATA=${DATA:-$SHARED/sa1b_1pct}
STORE=${STORE:-$SHARED/vit_h}
TEACHER=${TEACHER:-$SHARED/sam_vit_h_4b8939.pth}

# Over ssh nothing in the environment says that this is a slice: "auto" makes JAX ask the TPU's metadata who is who.
command=(python -m edgesam_jax.train --coordinator auto --config "$CONFIG" --workdir "$WORKDIR"
  --set data.source=prepared "data.root=$DATA" "data.embeddings=$STORE" "teacher=$TEACHER")
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd $(printf %q "$CODE") && source .venv/bin/activate && exec ${command[*]@Q}"
