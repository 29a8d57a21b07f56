"""Training checkpoints: bit-exact, the best and the newest are kept, and a full disk leaves the last one intact."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import optax
import pytest
from damage import damage, same

from edgesam_jax.checkpoints.load import load_model
from edgesam_jax.checkpoints.model import Model
from edgesam_jax.checkpoints.save import save_model
from edgesam_jax.checkpoints.training import TrainCheckpointer, restore
from edgesam_jax.config import Config, SamConfig, UsageError
from edgesam_jax.types import TrainState

CONFIG = Config(name="run", model=SamConfig(embed_dim=16))


def train_state(step: int, size: int = 8) -> TrainState:
    params = {"image_encoder": {"a": np.full((size, 3), step, np.float32)}, "mask_decoder": {"b": np.ones(2)}}
    # masked: optimizers of frozen parts hold empty nodes
    optimizer = optax.masked(optax.adamw(1e-3), {k: k == "image_encoder" for k in params})
    return TrainState(
        step=np.int32(step),
        params=params,
        batch_stats={},
        constants={"g": np.ones((2, 4), np.float32)},
        opt_state=optimizer.init(params),
    )


def steps(workdir: Path) -> set[str]:
    return {p.name for p in (workdir / "checkpoints").iterdir()}


def test_checkpoints_resume_and_the_newest_are_kept(tmp_path: Path) -> None:
    with TrainCheckpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.latest_step() is None
        with pytest.raises(UsageError, match="no checkpoint"):
            restore(tmp_path, train_state(0))
        for step in (2, 4, 10):
            checkpointer.save(step, train_state(step), CONFIG, {"seen": step * 8})
        checkpointer.save(10, train_state(11), CONFIG)  # a second time: nothing happens
    assert steps(tmp_path) == {"10", "4"} and not (tmp_path / "best.json").exists()
    state, position, saved = restore(tmp_path, train_state(0))
    same(state, train_state(10))
    assert position == {"seen": 80} and saved == CONFIG
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "10"):
        loaded = load_model(path)
        assert loaded.config == CONFIG.model and loaded.metadata["score"] == "stability"
        same(loaded.variables["params"], train_state(10).params)


def test_the_best_and_the_newest_survive_a_restart(tmp_path: Path) -> None:
    scores = {1: 0.2, 2: 0.9, 3: None, 4: 0.5, 5: 0.4, 6: 0.1}
    for some in ((1, 2, 3), (4, 5, 6)):
        with TrainCheckpointer(tmp_path, keep=1, keep_best=2) as checkpointer:
            for step in some:
                checkpointer.save(step, train_state(step), CONFIG, score=scores[step])
    assert steps(tmp_path) == {"2", "4", "6"}
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "score": 0.9}


def test_leftovers_of_a_killed_save_are_ignored_and_removed(tmp_path: Path) -> None:
    with TrainCheckpointer(tmp_path) as checkpointer:
        checkpointer.save(3, train_state(3), CONFIG)
    shutil.copytree(tmp_path / "checkpoints" / "3", tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp")
    same(load_model(tmp_path).variables["params"], train_state(3).params)
    with TrainCheckpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() == 3
        checkpointer.save(7, train_state(7), CONFIG)
    assert steps(tmp_path) == {"3", "7"}


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    with TrainCheckpointer(tmp_path) as checkpointer:
        for step in (1, 3):
            checkpointer.save(step, train_state(step), CONFIG)
    wider = train_state(0)
    wider = wider.replace(params={**wider.params, "image_encoder": {"other": np.zeros(3, np.float32)}})
    with pytest.raises(UsageError, match="of another model"):
        restore(tmp_path, wider)
    for file in (tmp_path / "checkpoints" / "3" / "variables").rglob("d/*"):
        damage(file)
    with pytest.raises(UsageError, match=r"3: damaged.*remove it to resume from step 1$"):
        restore(tmp_path, train_state(0))
    with pytest.raises(UsageError, match="damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize("limit", [200_000, 20_000, 2_000, 1])
def test_a_failed_save_leaves_the_last_checkpoint(limit: int, tmp_path: Path) -> None:
    """A limit on file size makes a write fail halfway, as a full disk does; a small one makes the first write fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with TrainCheckpointer(tmp_path) as checkpointer:
        checkpointer.save(1, train_state(1), CONFIG)
        checkpointer.wait()
        rng = np.random.default_rng(0)
        large = train_state(2, 100_000)
        large.params["image_encoder"]["a"] = rng.standard_normal((100_000, 3)).astype(np.float32)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            checkpointer.save(2, large, CONFIG)
            with pytest.raises(
                UsageError, match=r"step 2 could not be saved \(File too large\); step 1 is still valid\. Make"
            ) as caught:
                checkpointer.wait()
            with pytest.raises(UsageError, match=r"model: the checkpoint could not be saved \(File too large\)"):
                save_model(tmp_path / "model", Model(CONFIG.model, {"params": large.params}))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    time.sleep(0.5)  # other threads of Orbax may still be working
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoints"]
    assert "\n" not in str(caught.value)
    assert steps(tmp_path) == {"1"}
    same(restore(tmp_path, train_state(0))[0], train_state(1))


def test_a_read_only_folder_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").write_text("a file, where root could write everywhere")
    with pytest.raises(UsageError, match="cannot write there"):
        TrainCheckpointer(tmp_path)

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UsageError, match=r"checkpoints: cannot write there \(Read-only"):
        TrainCheckpointer(tmp_path / "other")


def test_only_one_of_several_processes_writes(tmp_path: Path) -> None:
    with TrainCheckpointer(tmp_path, writes=False) as checkpointer:
        checkpointer.save(1, train_state(1), CONFIG)
        checkpointer.wait()
        assert checkpointer.latest_step() is None and not list(tmp_path.iterdir())
