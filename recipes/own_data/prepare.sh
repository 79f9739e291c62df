#!/usr/bin/env bash
# Three corpora, each labelled for something else.   recipes/own_data/prepare.sh CONVERSATIONS CV ENTITIES [DATA]
#   CONVERSATIONS: folder with recordings.csv (columns recording, audio), stm/*.stm and rttm/*.rttm
#   CV:            a Common Voice release, of which French is taken
#   ENTITIES:      folder with table.csv (columns audio, text, speaker) whose texts mark entities: [Paris](LOC)
#   DATA:          where it all goes (default: data)
# Other formats of your own: tokenverse-pp manifest import --help.
set -euo pipefail
conversations=${1:?expected the folder of conversations}
cv=${2:?expected the folder cv-corpus-<version>}
entities=${3:?expected the folder of the entity corpus}
out=${4:-data}/own
mkdir -p "$out"

# Conversations: turns, then windows of several of them; endpoints by punctuation, else by pauses. English all of it.
tokenverse-pp manifest import "$out/turns.jsonl.gz" --recordings "$conversations/recordings.csv" \
    --stm "$conversations/stm" --rttm "$conversations/rttm" --set language=en --one-cut-per recording --overwrite
tokenverse-pp manifest conversations "$out/turns.jsonl.gz" "$out/windows.jsonl.gz" --tasks asr,scd,endp,lid \
    --normaliser words --overwrite
tokenverse-pp manifest split "$out/windows.jsonl.gz" "$out/conversations" --by recording --overwrite

# Read speech: the language is known, turns and entities are not.
tokenverse-pp manifest prepare commonvoice "$cv" "$out/commonvoice" --language fr

# Entities: named in the text.
tokenverse-pp manifest import "$out/entities.jsonl.gz" --table "$entities/table.csv" --inline-entities brackets \
    --set language=en --tasks asr,ner,lid --normaliser words --overwrite
tokenverse-pp manifest split "$out/entities.jsonl.gz" "$out/entities" --by speaker --overwrite

# What each gives to each task.
tokenverse-pp manifest stats "$out/conversations/cuts_train.jsonl.gz" "$out/commonvoice/cuts_train_fr.jsonl.gz" \
    "$out/entities/cuts_train.jsonl.gz"
