#!/bin/bash
# Runs a command with one GPU of its node per rank: srun gpu_per_rank.sh malax train my.yaml
set -u
for name in SLURM_LOCALID OMPI_COMM_WORLD_LOCAL_RANK MPI_LOCALRANKID PALS_LOCAL_RANKID; do
  local_rank=${!name:-}
  [ -n "$local_rank" ] && break
done
if [ -z "$local_rank" ]; then
  echo "gpu_per_rank.sh: no launcher says which rank of its node this is" >&2
  exit 2
fi
IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}"
if [ "${#gpus[@]}" -eq 0 ]; then
  echo "gpu_per_rank.sh: this node shows no GPU" >&2
  exit 2
fi
# a scheduler may have given each rank its own GPU already: then there is one, and it is taken
export CUDA_VISIBLE_DEVICES=${gpus[local_rank % ${#gpus[@]}]}
exec "$@"
