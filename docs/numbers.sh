#!/usr/bin/env bash
# Every number of the README and of docs/*.md that a run or a check made, made again: hours of two cores. The
# reports are then in numbers/, joined in numbers/report. Started again, it goes on where it was stopped.
#
#     docs/numbers.sh [FOLDER]
set -euo pipefail
out=${1:-numbers}
export OMP_NUM_THREADS=1
run() { # folder, command
    [ -e "$out/$1/report.html" ] || { echo "+ ${*:2}"; "${@:2}" --out "$out/$1"; }
}

# README: "What to expect", "The paper's table in small", "The scale of the reference"
run digits steer run digits
run clip steer run clip --seeds 5
run arms steer run clip --arms all --seeds 3
run scale-digits python -m steering.theory_checks.reference_scale digits --seeds 20 --scales 0,0.3,0.5,0.7,1,auto
run scale-clip python -m steering.theory_checks.reference_scale clip --seeds 5 --scales 0,0.3,1,auto

# docs/variance.md
run variance-digits steer variance digits --seeds 12
run variance-blobs steer variance blobs --seeds 12
run variance-clip steer variance clip --seeds 1
run validate-digits steer variance digits --validate --seeds 12
run validate-blobs steer variance blobs --validate --seeds 12
run validate-clean steer variance digits --validate --seeds 12 --set options.noise=0
python -m steering.theory_checks.variance.coverage --repetitions 500

# docs/curve.md
run curve-digits steer curve digits
for setting in A B MLP; do run "curve-$setting" steer curve digits --setting "$setting"; done

# docs/bound.md and docs/scaling.md
for seed in 0 1 2; do run "bound-$seed" steer bound --seed "$seed"; done
run scaling steer scaling

# docs/curvature.md
run tune steer tune digits
run tune-noise steer tune digits --parts noise --betas 0:1:0.1 --seeds 10
run tune-attacks steer tune digits --parts robustness --betas 0:1:0.2

steer report "$out"/{digits,clip,arms,variance-digits,curve-digits,bound-0,scaling,tune} --out "$out/report" \
    --title "Model steering, measured"
