#!/bin/bash
# Training on several machines under SLURM: sbatch scripts/slurm.sh experiment=7b [key=value ...]
# Two minutes before its time is up, or where it has to make room, the run saves and the job is put
# in the queue again; it goes on from its newest checkpoint. docs/cluster.md.
# What differs from site to site is given to sbatch, as --nodes=4 --partition=gpu --time=12:00:00.

#SBATCH --job-name=litmegalodon
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

set -u
# From where it was submitted: sbatch runs a copy of this script.
cd "$SLURM_SUBMIT_DIR" || exit 2
python=${PYTHON:-.venv/bin/python}
# After as many times something else is wrong.
most=${MOST_REQUEUES:-100}

# SLURM keeps the job's number when it queues it again: the same folder, to which the run adds.
srun --kill-on-bad-exit=1 "$python" src/train.py \
    "trainer.num_nodes=$SLURM_NNODES" \
    "trainer.devices=$SLURM_NTASKS_PER_NODE" \
    "hydra.run.dir=logs/train/runs/slurm-$SLURM_JOB_ID" \
    ckpt_path=auto \
    "$@" &
run=$!

# The signal comes to this script alone; srun hands it on to every process.
trap 'asked=1; kill -USR1 "$run" 2>/dev/null' USR1 TERM

# A signal ends a wait, not the run: wait again, which gives 127 where it had ended already.
code=127
while :; do
    asked=0
    wait "$run"
    now=$?
    [ "$now" = 127 ] || code=$now
    [ "$asked" = 1 ] || break
done

# 75: it has saved and wants to go on. 76: the watchdog has ended it, another machine may do better.
if [ "$code" = 75 ] || [ "$code" = 76 ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "$most" ]; then
        echo "error: exit code $code after $SLURM_RESTART_COUNT requeues, which is enough" >&2
        exit "$code"
    fi
    echo "exit code $code: job $SLURM_JOB_ID goes into the queue again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
