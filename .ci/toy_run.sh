#!/usr/bin/env bash
# recipes/toy through its real command lines: two ranks train, decode.py decodes, and the scores must be good.
#   .ci/toy_run.sh [FOLDER]     FOLDER: for data and experiment (default: a temporary one)
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-$(mktemp -d)}
bin=$PWD/.venv/bin
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

"$bin/python" recipes/toy/prepare.py --output-dir "$work/data"
"$bin/tokenverse-pp" manifest validate --audio "$work"/data/cuts_{train,dev,test}.jsonl.gz
"$bin/torchrun" --standalone --nproc-per-node 2 recipes/train.py --config recipes/toy/conf/toy.yaml \
    --data.train "[$work/data/cuts_train.jsonl.gz]" --data.valid "[$work/data/cuts_dev.jsonl.gz]" --data.max_duration 30 \
    --model.encoder.name "$work/data/encoder" --training.exp_dir "$work/exp"
"$bin/python" recipes/decode.py --model "$work/exp" --cuts "$work/data/cuts_test.jsonl.gz" \
    --output-dir "$work/exp/decode" --show 3
"$bin/python" .ci/check_scores.py "$work/exp/decode/scores.json" \
    'wer.all.wer<0.10' 'scd.text.f1>0.9' 'endp.text.f1>0.9' 'ner.exact.f1>0.9' 'lid.accuracy>0.9'
