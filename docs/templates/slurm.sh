#!/bin/bash
# Two machines of eight GPUs, one process a GPU. Submit with: sbatch slurm.sh
#SBATCH --job-name=posttrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log

# The run directory must be on a disk that all machines see.
RUN=$HOME/runs/$SLURM_JOB_NAME-$SLURM_JOB_ID

# srun starts the processes, posttrain finds out from Slurm which one each is. --kill-on-bad-exit ends all of them when
# one fails. --max-restarts lets the same command go on from the run's last checkpoint when Slurm queues the job again.
srun --kill-on-bad-exit=1 posttrain train sft \
    --model Qwen/Qwen3-8B --data rows.jsonl --output "$RUN" \
    --strategy fsdp --save-every 100 --max-restarts 3
