#!/bin/sh
# Scores two models on a task and compares them: examples/evaluate_two_models.sh [MODEL] [OTHER] [OUT]
#
# MODEL, OTHER  folders, hub ids or bm25   models/nvembed-small and bm25
# OUT           the folder for the scores  runs/scores
set -eu
model=${1:-models/nvembed-small}
other=${2:-bm25}
out=${3:-runs/scores}
instruction="handbook=Given a question of an employee, retrieve the rule that answers it"

for each in "$model" "$other"; do
    set -- --tasks handbook --data examples/tasks --out "$out"
    [ "$each" = bm25 ] || set -- "$@" --instruction "$instruction"  # BM25 takes none
    nvembed evaluate "$each" "$@"
done
nvembed compare "$out"/local__* --out "$out/comparison"
