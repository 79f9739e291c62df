#!/usr/bin/env bash
# Common Voice -> a cut a sentence, and 100 h of each language to train on.   recipes/commonvoice/prepare.sh CV [DATA [PROCESSES]]
#   CV: an unpacked release, cv-corpus-<version>, with be, ca, es, fr and it (CC0); DATA: default data; PROCESSES: 4
set -euo pipefail
cv=${1:?expected the folder cv-corpus-<version>}
out=${2:-data}/commonvoice
languages=(be ca es fr it)  # those of the XLSR-Transducer paper

tokenverse-pp manifest prepare commonvoice "$cv" "$out" --num-jobs "${3:-4}" "${languages[@]/#/--language=}"
for language in "${languages[@]}"; do
    tokenverse-pp manifest subset "$out/cuts_train_$language.jsonl.gz" "$out/cuts_train100_$language.jsonl.gz" \
        --hours 100 --random --overwrite
done
tokenverse-pp manifest validate "$out"/cuts_{train100,dev,test}_*.jsonl.gz
