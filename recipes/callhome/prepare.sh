#!/usr/bin/env bash
# CALLHOME American English and, for testing, Hub5 2000 -> windows of turns.   recipes/callhome/prepare.sh LDC [DATA]
#   LDC: a folder with LDC97S42, LDC97T14 and, if you have them, LDC2002S09 and LDC2002T43 (all from the LDC, licensed);
#   DATA: where manifests and 16 kHz audio go (default: data). Compressed SPHERE files need `lhotse install-sph2pipe`.
set -euo pipefail
ldc=${1:?expected the folder that holds LDC97S42 and LDC97T14}
data=${2:-data}

tokenverse-pp manifest prepare callhome-english "$ldc" "$data/callhome" --num-jobs 4
if [ -d "$ldc/LDC2002S09" ]; then
    tokenverse-pp manifest prepare eval2000 "$ldc" "$data/eval2000" --num-jobs 4
fi
tokenverse-pp manifest validate "$data"/callhome/cuts_{train,dev,test}.jsonl.gz
