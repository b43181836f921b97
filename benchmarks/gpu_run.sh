#!/usr/bin/env bash
# Measures everything that needs a GPU, in order of importance, within 12 minutes.
#
#     benchmarks/gpu_run.sh [--kit FOLDER] [--seconds N] [--tiny]
#                                                      the measurements; results go to $OUT, default gpu-results
#     benchmarks/gpu_run.sh --make-kit FOLDER [PYTHON] a kit for a machine without a network, such as 3.12
#
# The machine needs Python with torch (CUDA), transformers, tokenizers, safetensors, peft and pytest. What else
# is missing comes from the kit: FOLDER/wheels. A kit may also hold a prepared training, FOLDER/training, with
# recipe.toml, model/ and data/ as `nvembed train` takes them, and task folders in dev/.
#
# Each part has its own time limit, and writes its results as soon as it has them. A part that fails does not
# stop the others; the exit status is the number of failed parts. --tiny runs all parts with tiny models on
# the CPU, to try the script; its result pages then say "not measured".

set -uo pipefail
out=$(realpath -m "${OUT:-gpu-results}") kit='' tiny=''
whole_s=720
started=$SECONDS
packages=(annotated-types attrs cyclopts docstring-parser platformdirs pydantic pydantic-core rich-rst docutils
    typing-inspection)

make_kit() { # FOLDER [PYTHON]
    local constraints=() name
    for name in "${packages[@]}"; do
        constraints+=("$(grep -iE "^${name//-/[-_]}==" "$(dirname "$0")/../constraints.txt" || echo "$name")")
    done
    mkdir -p "$1/wheels"
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version "${2:-3.12}" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        -d "$1/wheels" "${constraints[@]}" || exit 2
    du -sh "$1"
}

while [ $# -gt 0 ]; do
    case $1 in
    --make-kit) make_kit "$(realpath -m "$2")" "${@:3}"; exit ;;
    --kit) kit=$(realpath -m "$2"); shift 2 ;;
    --seconds) whole_s=$2; shift 2 ;; # in place of 720
    --tiny) tiny=1; shift ;;
    *) sed -n '2,16s/^# \{0,1\}//p' "$0"; exit 2 ;;
    esac
done

cd "$(dirname "$0")/.." || exit 2
mkdir -p "$out"
log=$out/log.txt summary=$out/summary.md
: >"$log"
printf '# GPU measurements\n\n| part | result | seconds |\n|---|---|---|\n' >"$summary"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONUNBUFFERED=1 PYTHONPATH=src TORCHINDUCTOR_CACHE_DIR=$work/inductor

if compgen -G "${kit:-none}/wheels/*.whl" >/dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" \
        "$kit"/wheels/*.whl >>"$log" 2>&1 || { echo "the kit's wheels do not fit this Python" >&2; exit 2; }
    export PYTHONPATH=$work/site:$PYTHONPATH
fi

python3 - "$tiny" <<'PYTHON' || exit 2
import importlib.util
import sys

needed = "torch transformers tokenizers safetensors peft pytest numpy cyclopts platformdirs pydantic rich attrs".split()
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"missing in {sys.executable}: {', '.join(missing)}; install them, or pass --kit FOLDER")
import torch

if not torch.cuda.is_available() and not sys.argv[1]:
    sys.exit("torch sees no CUDA device: pass --tiny to try the script on the CPU")
print(f"torch {torch.__version__}", torch.cuda.get_device_name() if torch.cuda.is_available() else "on the CPU")
PYTHON

failed=0
part() { # NAME LIMIT_S COMMAND...: one part, in the time that is left
    local name=$1 limit=$2 begin=$SECONDS left=$((whole_s - (SECONDS - started))) rc result
    shift 2
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 10 ]; then
        echo "| $name | no time left | 0 |" >>"$summary"
        failed=$((failed + 1))
        return
    fi
    echo "== $name (at most $limit s): $*" | tee -a "$log"
    timeout -k 5 "$limit" "$@" 2>&1 | tee -a "$log" | tail -n 40
    rc=${PIPESTATUS[0]}
    case $rc in 0) result=done ;; 124 | 137) result="stopped after $limit s" ;; *) result="failed ($rc)" ;; esac
    [ "$rc" -eq 0 ] || failed=$((failed + 1))
    echo "| $name | $result | $((SECONDS - begin)) |" >>"$summary"
}

tests() { # PYTEST_ARGUMENTS...
    python3 -m pytest -q -p no:cacheprovider --color=no "$@" tests/gpu
}
export -f tests

flags=(--results "$out")
[ -z "$tiny" ] || flags+=(--device cpu --tiny)
repeats() { if [ -n "$tiny" ]; then echo 1; else echo "$1"; fi; }

part "tests" 150 bash -c 'tests -ra'
part "encode: plain layers" 150 python3 benchmarks/encode_gpu.py "${flags[@]}" --repeats "$(repeats 3)"
part "encode: compiled layers" 120 python3 benchmarks/encode_gpu.py "${flags[@]}" --variant compiled \
    --repeats "$(repeats 3)"
part "encode: FP8, compiled layers" 120 python3 benchmarks/encode_gpu.py "${flags[@]}" --variant fp8 \
    --repeats "$(repeats 3)"
part "latency" 120 python3 benchmarks/latency_gpu.py "${flags[@]}" --repeats "$(repeats 50)"
part "training step" 240 python3 benchmarks/train_gpu.py "${flags[@]}" --repeats "$(repeats 2)"

training=${kit:+$kit/training}
if [ -n "$training" ] && [ -f "$training/recipe.toml" ]; then
    dev=()
    for task in "$training"/dev/*/; do [ ! -d "$task" ] || dev+=(--dev "$task"); done
    part "training of the prepared recipe" 600 python3 -c 'import sys; from nvembed.cli.main import main; sys.exit(main())' train "$training/recipe.toml" \
        --model "$training/model" --data "$training/data" --out "$work/run" "${dev[@]}"
    cp "$work/run/log.jsonl" "$out/training.jsonl" 2>/dev/null || true
fi

for page in "$out"/*_gpu*.md; do
    if [ -e "$page" ]; then { echo; cat "$page"; } >>"$summary" && rm "$page"; fi
done
cat "$summary"
exit "$failed"
