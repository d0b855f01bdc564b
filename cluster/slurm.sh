#!/bin/bash
# A Ray cluster inside a Slurm allocation, and one run on it. From a checkout on a file system that
# all nodes see, after `make install DEVICE=gpu` there:
#
#   sbatch cluster/slurm.sh configs/llama2_70b_u13b_gsm8k.yaml run_dir=$SCRATCH/runs/70b
#   tail -F rft-JOBID.log
#   ssh -L 8265:127.0.0.1:8265 FIRST_NODE        # the dashboard: http://127.0.0.1:8265
#
# The first node has the head, the driver and GPUs like the others. Its token is made for this
# allocation alone and lies in ./rft-JOBID.token. The same command again continues a run.
#SBATCH --job-name=rft
#SBATCH --output=rft-%j.log
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=72:00:00
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: sbatch [options] cluster/slurm.sh CONFIG [key=value ...]" >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"
export PATH="$PWD/.venv/bin:$PATH"

port=6379
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=$(head -n1 <<< "$nodes")
# One address that the other nodes reach, not one of each network.
address=$(srun --overlap --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')

umask 077
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$PWD/rft-$SLURM_JOB_ID.token"
openssl rand -hex 32 > "$RAY_AUTH_TOKEN_PATH"

# Everything that srun started ends with this script, the nodes' Ray with it.
trap 'kill $(jobs -p) 2> /dev/null || true; rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

per_node=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")
echo "head: $head ($address:$port)"
srun --overlap --nodes=1 --ntasks=1 -w "$head" \
    ray start --head --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1 \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID" "${per_node[@]}" --block &

for _ in $(seq 60); do
    ray health-check --address "$address:$port" > /dev/null 2>&1 && break
    sleep 5
done
ray health-check --address "$address:$port" > /dev/null || { echo "no head at $address" >&2; exit 1; }

if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) \
        --ntasks-per-node=1 --exclude="$head" \
        ray start --address="$address:$port" "${per_node[@]}" --block &
fi

RAY_ADDRESS="$address:$port" rft-ray run "$@" --wait 600
