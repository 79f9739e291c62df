#!/usr/bin/env bash
# AMI meetings -> windows of turns.   recipes/ami/prepare.sh AMI [DATA [PROCESSES]]
#   AMI: the corpus, <meeting>/audio/*.wav and ami_public_manual_1.6.2(.zip); DATA: where manifests go (default: data)
# To get the corpus (CC BY 4.0): lhotse download ami --mic ihm-mix AMI
set -euo pipefail
ami=${1:?expected the folder of AMI}
out=${2:-data}/ami

tokenverse-pp manifest prepare ami "$ami" "$out" --mic ihm-mix --partition full-corpus-asr --num-jobs "${3:-4}"
tokenverse-pp manifest validate "$out"/cuts_{train,dev,test}.jsonl.gz
