#!/usr/bin/env bash
# Train with SLURM on all GPUs of each machine (docs/cluster.md):
#   sbatch recipes/slurm.sh --config recipes/mls/conf/tokenverse_pp.yaml                              8 GPUs
#   sbatch --gpus-per-node 1 --cpus-per-task 8 recipes/slurm.sh --config ..                           1 GPU
#   sbatch --nodes 8 recipes/slurm.sh --config ..                                                     64 GPUs
#   A partition or account: sbatch -p .. -A .. recipes/slurm.sh ..
#   All machines must see exp_dir, or pass --training.storage local; the data must be at the same path on each.
#   Five minutes before the time limit the run saves a checkpoint and the job is queued again; it then resumes.
#SBATCH --job-name=tokenverse_pp
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
: "${SLURM_JOB_ID:?start it with sbatch}"
[ -f .venv/bin/activate ] && . .venv/bin/activate
export OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # since SLURM 22.05 srun does not take it from sbatch
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240             # seconds from SIGTERM to SIGKILL, in place of 30
gpus="${SLURM_GPUS_ON_NODE:-8}"

# SIGUSR1 is SLURM's notice. srun would answer SIGTERM by SIGKILL to its tasks: scancel signals the tasks themselves.
ending=
trap 'ending=1; scancel --signal=TERM "$SLURM_JOB_ID" || true' USR1

# On the first machine, before all GPUs start; stops here if something needed fails.
srun --nodes 1 --ntasks 1 tokenverse-pp doctor "$@" --gpus $((gpus * SLURM_JOB_NUM_NODES))

hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a machine
srun torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$gpus" --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d \
    --rdzv-endpoint "${hosts%%$'\n'*}:$port" recipes/train.py "$@" &
job=$!
code=0
wait "$job" || code=$?
if [ -n "$ending" ]; then # each signal ends a `wait`
    while kill -0 "$job" 2>/dev/null; do wait "$job" || true; done
    code=0
    wait "$job" || code=$? # which bash remembers
    [ "$code" = 0 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
