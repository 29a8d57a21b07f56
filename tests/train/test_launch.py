"""The launch files: what they would run is what the commands understand, and exit codes are acted on as they say.

``srun``, ``squeue``, ``scontrol``, ``gcloud`` and ``python`` are stand-ins that write down how they were called.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess

import pytest
import yaml
from paths import ROOT

from edgesam_jax import embed, prepare
from edgesam_jax.cli.command import FAILED, LOST_PROCESS, USAGE
from edgesam_jax.eval import __main__ as evaluate
from edgesam_jax.predict import __main__ as predict
from edgesam_jax.train import __main__ as train

LAUNCH = ROOT / "docs" / "launch"
TEXTS = [*LAUNCH.glob("*.md"), *(ROOT / "docs" / f"{name}.md" for name in ("scale", "data")), ROOT / "README.md"]
# The options of sbatch that these files may use, with the form of their values.
SBATCH = {
    "job-name": r"[\w-]+", "nodes": r"\d+", "ntasks-per-node": r"\d+", "gpus-per-node": r"\d+", "gpus": r"\d+",
    "cpus-per-task": r"\d+", "mem": r"\d+[KMGT]?", "time": r"(\d+-)?\d+:\d\d:\d\d", "signal": r"(B:)?[A-Z]+\d?@\d+",
    "requeue": None, "open-mode": "append|truncate", "output": r"\S+", "array": r"\d+-\d+(%\d+)?",
}  # fmt: skip


@pytest.fixture
def stand_ins(tmp_path):
    """A folder of programs that record their arguments, one call a line; returns how to run a script among them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    answers = {"srun": 'exit "$SRUN_EXIT"', "squeue": 'echo "$STATE"', "scontrol": "", "gcloud": "", "python": ""}
    for name, then in answers.items():
        program = folder / name
        program.write_text(f'#!/bin/bash\nprintf "%q " {name} "$@" >> "$CALLS"; echo >> "$CALLS"\n{then}\n')
        program.chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()

    def run(*command: str, **environment: str) -> tuple[int, list[list[str]]]:
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        given = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
        given |= {"PATH": f"{folder}:{given['PATH']}", "CALLS": str(calls), "SLURM_SUBMIT_DIR": str(tmp_path)}
        done = subprocess.run([*command], env=given | environment, cwd=tmp_path, capture_output=True, text=True)
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, [shlex.split(line) for line in lines]

    return run


def understood(argv: list[str], monkeypatch: pytest.MonkeyPatch):
    """Give ``python -m MODULE ...`` to the parser of that module; the config where it trains."""
    argv = argv[argv.index("python") :]
    assert argv[:2] == ["python", "-m"], argv
    module, rest = argv[2], argv[3:]
    monkeypatch.chdir(ROOT)
    if module == "edgesam_jax.train":
        return train.parse(rest).config
    commands = {"embed": embed, "prepare": prepare, "eval": evaluate, "predict": predict}
    commands[module.removeprefix("edgesam_jax.")]._parser().parse_args(rest)
    return None


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda p: p.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n") and os.access(script, os.X_OK)
    head, options = True, {}
    for line in text.splitlines():
        head = head and (not line or line.startswith("#"))
        if line.startswith("#SBATCH"):
            assert head, f"sbatch stops reading at the first command: {line}"
            match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
            assert match, line
            form = SBATCH[match[1]]
            assert match[2] is None if form is None else re.fullmatch(form, match[2] or ""), line
            options[match[1]] = match[2]
    if script.name.startswith("slurm"):
        assert "requeue" in options and options["open-mode"] == "append", "a requeued job keeps its log"
    if script.name == "slurm.sh":
        assert options["ntasks-per-node"] == options["gpus-per-node"], "JAX gives each task under SLURM one device"
        assert options["signal"].startswith("TERM@"), "the tasks get it, not the script"


@pytest.mark.parametrize(
    ("code", "state", "again"),
    [(0, "RUNNING", False), (143, "RUNNING", True), (143, "COMPLETING", False), (1, "RUNNING", False),
     (2, "RUNNING", False)],
)  # fmt: skip
def test_slurm_trains_and_goes_on_only_after_saving(stand_ins, monkeypatch, code, state, again):
    left, calls = stand_ins(
        str(LAUNCH / "slurm.sh"), SRUN_EXIT=str(code), STATE=state, SLURM_JOB_ID="77", SLURM_CPUS_PER_TASK="10",
        WORKDIR="runs/with a space",
    )  # fmt: skip
    assert left == code, "SLURM records how it ended"
    started = calls[0]
    assert started[0] == "srun" and "--cpus-per-task=10" in started and "runs/with a space" in started
    config = understood(started, monkeypatch)
    assert config.name == "edgesam_stage1" and config.data.embeddings == ("DATA/vit_h",)
    assert (["scontrol", "requeue", "77"] in calls) == again
    assert sum(call[0] == "srun" for call in calls) == 1


def test_slurm_embeds_in_parts(stand_ins, monkeypatch):
    for part in ("0", "7"):
        left, calls = stand_ins(
            str(LAUNCH / "slurm_embed.sh"), SLURM_ARRAY_TASK_ID=part, SLURM_ARRAY_TASK_COUNT="8"
        )  # fmt: skip
        assert left == 0 and calls[0][-2:] == ["--part", f"{part}/8"]
        understood(calls[0], monkeypatch)


def test_a_slice_runs_the_same_command_on_every_host(stand_ins, monkeypatch, tmp_path):
    assert stand_ins(str(LAUNCH / "tpu_slice.sh"), ZONE="z")[0] != 0, "which slice?"
    left, calls = stand_ins(
        str(LAUNCH / "tpu_slice.sh"), TPU="name", ZONE="zone", CODE=str(tmp_path), WORKDIR="/mnt/my runs/1"
    )
    (call,) = calls
    assert left == 0 and call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "name"] and "--worker=all" in call
    remote = next(text for text in call if text.startswith("--command=")).removeprefix("--command=")
    left, calls = stand_ins("bash", "-c", remote)  # as the shell on a host would
    assert left == 0 and len(calls) == 1 and "/mnt/my runs/1" in calls[0]
    assert understood(calls[0], monkeypatch).data.source == "prepared"
    assert calls[0][calls[0].index("--coordinator") + 1] == "auto", "ssh sets no variable that tells of a slice"


def test_the_jobset_fits_its_slice(monkeypatch):
    spec = yaml.safe_load((LAUNCH / "gke.yaml").read_text())["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    assert job["parallelism"] == job["completions"] == chips / container["resources"]["limits"]["google.com/tpu"]
    final = job["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert final["containerName"] == container["name"] and final["values"] == [FAILED, USAGE], "143 starts again"
    assert LOST_PROCESS not in final["values"], "a lost pod doesn't end the job for good"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    config = understood(container["command"], monkeypatch)
    mounted = container["volumeMounts"][0]["mountPath"]
    assert all(path.startswith(mounted) for path in (config.data.root, config.teacher, *config.data.embeddings))
    assert config.data.batch_size % chips == 0


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_commands_in_the_texts_are_understood(path, monkeypatch):
    blocks = re.findall(r"```bash\n(.*?)```", path.read_text(), re.S)
    count = 0
    for block in blocks:
        variables = dict(re.findall(r'^(\w+)="(.*)"$', block, re.M))
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("python -m edgesam_jax."):
                command = re.sub(r"\$(\w+)", lambda match: variables[match[1]], line)  # noqa: B023
                understood(shlex.split(command, comments=True), monkeypatch)
                count += 1
    assert count
