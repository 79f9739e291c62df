"""Training killed at random moments, again and again, ends with the weights of a run that nobody touched."""

import os
import random
import re

import pytest
from runs import LIMIT, Run, checkpoints, weights
from toy_runs import toy_options

KILLS = int(os.environ.get("FAULT_KILLS", "10"))  # the long form: FAULT_KILLS=100


def options(corpus, exp_dir):
    """Twelve steps over two epochs and more, a checkpoint after each, so that many kills hit a write."""
    changes = {"training__max_steps": 12, "training__save_every": 1, "training__valid_every": 4}
    return toy_options(corpus, exp_dir, **changes, data__max_cuts=4, model__encoder__freeze_feature_encoder="true")


@pytest.fixture(scope="module")
def unbroken(tiny_corpus, tmp_path_factory):
    """Bytes of the final model of a run that is left alone."""
    folder = tmp_path_factory.mktemp("unbroken")
    run = Run.start(options(tiny_corpus, folder / "exp"), folder / "stderr")
    assert run.wait(LIMIT) == 0, run.said()
    return weights(folder / "exp")


def leave_alone_for_a_while(run, random_):
    """The exit code, or None at a random moment: mostly of training, else of getting ready for it."""
    if random_.random() < 0.8:
        while "tasks asr" not in run.said():
            code = run.wait(0.02)
            if code is not None:
                return code
    return run.wait(random_.uniform(0.0, 1.5))


@pytest.mark.slow
def test_every_killed_run_ends_as_if_it_had_not_been(tiny_corpus, tmp_path, unbroken):
    random_ = random.Random(os.environ.get("FAULT_SEED", "1"))
    kills = in_training = runs = starts = 0
    while kills < KILLS:
        exp_dir = tmp_path / f"run-{runs}" / "exp"
        runs += 1
        while True:
            before = checkpoints(exp_dir)
            starts += 1
            run = Run.start(options(tiny_corpus, exp_dir), tmp_path / f"start-{starts}.stderr")
            code = leave_alone_for_a_while(run, random_) if kills < KILLS else run.wait(LIMIT)
            if code is not None:
                assert code == 0, run.said()
                break
            run.kill()
            kills += 1
            in_training += "tasks asr" in run.said()
            if before:
                # Nothing older than the newest checkpoint was taken, and none was lost.
                resumed = re.findall(r"resuming from (step-\d+)", run.said())
                assert not resumed or resumed[-1] >= before[-1]
                assert checkpoints(exp_dir)[-1] >= before[-1]
        assert weights(exp_dir) == unbroken, run.said()
    assert in_training >= KILLS / 2
    print(f"{kills} kills, {in_training} of them in training, in {runs} runs of {starts} starts")
