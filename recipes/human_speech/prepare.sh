#!/usr/bin/env bash
# Human speech, the Whisper-base encoder, and its stored features. About 20 minutes on two cores.
#   recipes/human_speech/prepare.sh [DATA]      DATA: where everything goes (default: data)
set -euo pipefail
data=${1:-data}
base=recipes/human_speech/conf/base.yaml
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

python recipes/human_speech/prepare.py --output-dir "$data/human_speech"
tokenverse-pp manifest validate "$data"/human_speech/cuts_{train,dev,test}.jsonl.gz
python recipes/human_speech/prepare_encoder.py --output-dir "$data/whisper-base"
for part in dev test train; do
    stored=$data/human_speech/features/cuts_$part.jsonl.gz
    [ -e "$stored" ] || tokenverse-pp manifest store-features --config "$base" --bf16 \
        "$data/human_speech/cuts_$part.jsonl.gz" "$stored"
done
tokenverse-pp manifest stats "$data"/human_speech/cuts_{train,dev,test}.jsonl.gz
