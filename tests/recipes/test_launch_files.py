"""recipes/slurm.sh and recipes/kubernetes.yaml: as their programs read them, for 1, 8 and 64 GPUs."""

import os
import re
import shutil
import subprocess
from importlib.util import find_spec

import pytest
import yaml
from scripts import ROOT

SLURM = ROOT / "recipes" / "slurm.sh"
MANIFEST = ROOT / "recipes" / "kubernetes.yaml"

# srun: notes its words; a step of torchrun lasts until it gets SIGTERM, as ranks do that save a checkpoint.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> calls
case "$*" in
  torchrun*) trap 'trap "" TERM; [ -z "$TWICE" ] || kill -USR1 "$PPID"
     while [ "$(grep -c scancel calls)" -lt "${TWICE:-1}" ]; do sleep 0.05; done
     echo saved >> calls; exit 1' TERM
     echo $$ > torchrun.pid; [ -z "$ENDS" ] || exit "$ENDS"
     kill -USR1 "$PPID"; while :; do sleep 0.05; done;;
esac
"""
SCANCEL = '#!/usr/bin/env bash\necho "scancel $*" >> calls\nkill -TERM "$(cat torchrun.pid)"\n'
SCONTROL = '#!/usr/bin/env bash\necho "scontrol $*" >> calls\n[ "$1" = show ] && printf "node1\\nnode2\\n" || true\n'


@pytest.fixture
def submitted(tmp_path):
    """Runs the batch script with stand-ins for SLURM's commands -> (exit code, what they were called with)."""
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(ends="", **variables):
        job = {"SLURM_JOB_ID": "10042", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
        environment = {**os.environ, **job, "SLURM_GPUS_ON_NODE": "4", "ENDS": ends, **variables}
        environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
        command = ["bash", str(SLURM), "--config", "my.yaml"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, (tmp_path / "calls").read_text().splitlines()

    return run


def test_slurm_script_starts_doctor_and_all_ranks(submitted):
    code, calls = submitted(ends="0")
    assert code == 0
    assert calls[0] == "srun --nodes 1 --ntasks 1 tokenverse-pp doctor --config my.yaml --gpus 8"
    assert calls[2].startswith("srun torchrun --nnodes 2 --nproc-per-node 4 --rdzv-id 10042 --rdzv-backend c10d ")
    assert calls[2].endswith(" --rdzv-endpoint node1:20042 recipes/train.py --config my.yaml") and len(calls) == 3


def test_slurm_script_fails_as_training_does(submitted):
    code, calls = submitted(ends="7")
    assert code == 7 and not any("requeue" in call for call in calls)


def test_slurm_notice_saves_and_queues_the_job_again(submitted):
    code, calls = submitted()
    assert calls[3:] == ["scancel --signal=TERM 10042", "saved", "scontrol requeue 10042"] and code == 1


def test_slurm_job_that_gets_a_second_notice_finishes_saving(submitted):
    code, calls = submitted(TWICE="2")
    assert calls[3:] == ["scancel --signal=TERM 10042"] * 2 + ["saved", "scontrol requeue 10042"] and code == 1


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_slurm_script_by_shellcheck():
    subprocess.run(["shellcheck", "--exclude", "SC1091", str(SLURM)], check=True)


def manifests():
    """The manifest for each number of GPUs, by the commands in docs/cluster.md."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    eight, one = re.findall(r"^    (sed '[^\n]*' )(\S+) > \S+", text, flags=re.M)
    texts = {64: MANIFEST.read_text(encoding="utf-8")}
    for gpus, (command, _), before in ((8, eight, 64), (1, one, 8)):
        done = subprocess.run(["bash", "-c", command], input=texts[before], capture_output=True, text=True, check=True)
        texts[gpus] = done.stdout
    return texts


@pytest.mark.parametrize("gpus", [1, 8, 64])
def test_kubernetes_manifest(gpus):
    service, job = yaml.safe_load_all(manifests()[gpus])
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    pods, limits = spec["completions"], container["resources"]["limits"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert pods * int(limits["nvidia.com/gpu"]) == gpus and spec["parallelism"] == pods == int(environment["NODES"])
    assert limits["memory"] == container["resources"]["requests"]["memory"] == ("50Gi" if gpus == 1 else "400Gi")
    # The name of the first pod, which the service and the subdomain make.
    assert service["metadata"]["name"] == pod["subdomain"] == job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert f"--rdzv-endpoint {job['metadata']['name']}-0.{pod['subdomain']}:29500 " in container["args"][0]
    assert int(environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    if find_spec("kubernetes_validate"):
        import kubernetes_validate

        for resource in (service, job):
            kubernetes_validate.validate(resource, "1.32", strict=True)
