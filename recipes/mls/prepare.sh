#!/usr/bin/env bash
# Multilingual LibriSpeech -> a cut a segment, training cuts shuffled.   recipes/mls/prepare.sh MLS [DATA [PROCESSES]]
#   MLS: a folder with mls_german_opus, mls_polish_opus, .. (CC BY 4.0, OpenSLR 94); DATA: default data; PROCESSES: 4
set -euo pipefail
mls=${1:?expected the folder that holds mls_<language> or mls_<language>_opus}
out=${2:-data}/mls

tokenverse-pp manifest prepare mls "$mls" "$out" --num-jobs "${3:-4}"
tokenverse-pp manifest validate "$out"/cuts_*.jsonl.gz
