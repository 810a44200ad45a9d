#!/usr/bin/env bash
# One run of steer as a Slurm job on several machines.
#
#     sbatch docs/slurm.sh
#
# Change the numbers below and the line that begins with "srun". A job that meets its time limit, or has to make room
# for another one, saves what it has, asks to be queued again, and goes on where it stopped. A job that failed or was
# cancelled goes on when the same script is submitted again: the run is in its folder, not in the job.

# The name that squeue shows.
#SBATCH --job-name=steer
# Machines, and GPUs of each.
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
# One process for each GPU: as many as above.
#SBATCH --ntasks-per-node=8
# Cores of each process: one that trains, and options.workers (below) that read and decode.
#SBATCH --cpus-per-task=12
# The longest that one job may take; the run may take several.
#SBATCH --time=24:00:00
# So many seconds before that, the processes are told to stop. A step and a checkpoint have to fit in. There is no
# "B:" in front, so the processes hear it and this script does not.
#SBATCH --signal=TERM@120
# Slurm may queue the job again: when it makes room for another one, and when a machine fails.
#SBATCH --requeue
# What is printed goes on in the same file when the job is queued again.
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append

# The Python that has model-steering; the folder has to be seen by all machines.
source .venv/bin/activate
# Newer srun takes the cores of a task from this name alone.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
# Threads of every process on the CPU; more would take the readers' cores.
export OMP_NUM_THREADS=1

# One task a GPU; each learns from Slurm which one it is and where to meet the others. --out is what makes this
# repeatable: the first job makes the folder, later ones find the run in it and go on. Settings stay as they are, but
# those of where and how fast it runs (--device, --threads, options.workers, the number of processes). If one process
# fails, the others are ended instead of waiting for it.
srun --kill-on-bad-exit=1 python -m steering run clip \
  --data 'shards/{00000..00999}.tar' --ref openai/ViT-B-32 --set options.workers=8 --out runs/clip-large
code=$?

# 143 says that the run was told to stop and has saved everything. If Slurm still counts the job as running, that was
# because of its time limit or of another job: then it has more to do. If somebody cancelled it, Slurm says so.
if [ "$code" -eq 143 ] && [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
