#!/usr/bin/env bash
# Cold start, reinforcement learning and evaluation as jobs that wait for one another: each begins when the one before has ended
# with 0, and a training that was stopped near its end is queued again. Run it on the login node, in a folder that all nodes see.
#
#   bash align.sh MODEL THINK NO_THINK PROMPTS BENCHMARK
#
# MODEL: from four-stages.sbatch. THINK, NO_THINK: conversations. PROMPTS: questions with answers. BENCHMARK: a folder for kvtools
# eval-kcmm. STEPS (default 2ep): of both trainings. START, GRPO: more options of each. SBATCH: options of sbatch, for all jobs.
set -euo pipefail

case ${1:-} in
--train)
  srun --mpi=pmi2 --input=0 --kill-on-bad-exit=1 "${@:2}" && exit
  rc=$?
  [ $rc = 75 ] && scontrol requeue "$SLURM_JOB_ID"
  exit $rc
  ;;
--run) exec "${@:2}" ;;
esac

[ $# = 5 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
model=$1 think=$2 no_think=$3 prompts=$4 benchmark=$5
steps=${STEPS:-2ep}
read -ra start_more <<<"${START:-}"
read -ra grpo_more <<<"${GRPO:-}"
read -ra options <<<"${SBATCH:-}"

job() { # job NAME AFTER --run|--train OPTION-OF-SBATCH... -- COMMAND...: submits it and prints its number
  local name=$1 after=$2 how=$3 words=()
  shift 3
  while [ "$1" != -- ]; do words+=("$1"); shift; done
  sbatch --parsable --job-name="$name" ${after:+--dependency=afterok:$after --kill-on-invalid-dep=yes} "${words[@]}" \
    --signal=USR2@120 --open-mode=append --requeue "${options[@]}" "$0" "$how" "${@:2}"
}
one=(--nodes=1 --ntasks=1) two=(--nodes=2 --ntasks-per-node=1)
mix=$(job mix "" --run "${one[@]}" -- \
  kvtools coldstart-mix --think "$think" --no-think "$no_think" --repeat --repair --against "$prompts" -o mix.kvs --force)
start=$(job cold-start "$mix" --train "${two[@]}" -- \
  kvtools pretrain keye mix.kvs --stage cold-start --init "$model" --steps "$steps" "${start_more[@]}" --log cold-start.jsonl \
  -o start.safetensors)
grpo=$(job grpo "$start" --train "${two[@]}" -- \
  kvtools rl grpo "$prompts" --model start.safetensors --reward correct --reward format:0.5 --steps "$steps" "${grpo_more[@]}" \
  --log grpo.jsonl -o better.safetensors)
eval=$(job kcmm "$grpo" --run "${one[@]}" -- \
  kvtools eval-kcmm "$benchmark" --model better.safetensors --mode no_think --details details.jsonl --json)
echo "mix $mix, cold start $start, grpo $grpo, evaluation $eval"
