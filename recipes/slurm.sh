#!/usr/bin/env bash
# Train with SLURM on eight GPUs a machine:
#   sbatch recipes/slurm.sh --config recipes/mls/conf/tokenverse_pp.yaml
#   Two machines: sbatch --nodes 2 recipes/slurm.sh ..; a partition or account: sbatch -p .. -A .. recipes/slurm.sh ..
#   exp_dir and the data must be on storage that all machines share. A requeued job resumes.
#SBATCH --job-name=tokenverse_pp
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
: "${SLURM_JOB_ID:?start it with sbatch}"
[ -f .venv/bin/activate ] && . .venv/bin/activate
export OMP_NUM_THREADS=1

# On the first machine, before all GPUs start; stops here if something needed fails.
srun --nodes 1 --ntasks 1 tokenverse-pp doctor "$@" --gpus $((8 * SLURM_JOB_NUM_NODES))

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node 8 --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
    --rdzv-endpoint "$host:29500" recipes/train.py "$@"
