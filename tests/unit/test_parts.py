"""A state that ranks wrote in parts: whole or absent, whatever ends the run, and damage is named."""

import errno
import os

import pytest
import torch

from kvtools.artifact.state import RunState
from kvtools.errors import Corrupt
from kvtools.train import parts
from kvtools.world import World

TENSORS = {
    "model.weight": torch.arange(6.0).reshape(2, 3),
    "model.half": torch.arange(4, dtype=torch.bfloat16),
    "optimizer.step.weight": torch.tensor(7.0),
    "model.empty": torch.zeros(0, 3),
}


def save(state, factor, progress):
    folder = state.new_parts()
    files = parts.write_parts(folder, {name: x * factor for name, x in TENSORS.items()}, World())
    state.save({}, parts=folder, files=files, progress=progress)
    return folder


def read(state):
    bag = state.load()
    folder = state.parts_of(bag)
    assert parts.names_in_parts(folder) == set(TENSORS)
    places = {name: torch.full_like(x, -1) for name, x in TENSORS.items()}
    parts.read_parts(folder, places)
    return bag.fields["progress"], places


def test_the_state_before_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "_FILE_BYTES", 8)  # so that there are several files
    state = RunState(str(tmp_path / "state"), "train-state", {"seed": 0})
    for factor in (1, 2, 3):
        kept = save(state, factor, factor)
        assert sorted(os.listdir(tmp_path / "state")) == [kept.name, "train.state"]
        assert len(os.listdir(kept)) > 1
        progress, found = read(state)
        assert progress == factor
        for name, x in TENSORS.items():
            assert torch.equal(found[name], x * factor)
    # killed while the next is written: its folder is there, and the state is the one before
    torn = state.new_parts()
    (torn / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    assert torn != kept
    assert read(state)[0] == 3
    assert save(state, 4, 4) == torn
    assert read(state)[0] == 4
    state.save({"x": TENSORS["model.weight"].numpy()}, progress=5)  # by one rank with the whole model
    assert os.listdir(tmp_path / "state") == ["train.state"]
    assert state.parts_of(state.load()) is None
    save(state, 6, 6)
    state.forget()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("damage", ["lost", "flipped", "cut", "more", "no folder", "elsewhere"])
def test_damage_of_a_part_is_named_and_started_over_by_force(tmp_path, damage):
    state = RunState(str(tmp_path / "state"), "train-state", {})
    folder = save(state, 1, 1)
    (file,) = folder.iterdir()
    data = file.read_bytes()
    if damage == "lost":
        file.unlink()
    elif damage == "flipped":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "more":
        (folder / "more").write_bytes(b"")
    elif damage == "no folder":
        folder.rename(tmp_path / "away")
    else:
        state.save({}, parts=tmp_path, files={})
    with pytest.raises(Corrupt, match=r"the file is damaged. The stopped run cannot be resumed. Give --force to start over"):
        state.load()
    assert state.load(start_over=True) is None
    assert not state.is_kept


def test_a_full_disk_is_told_with_the_folder_and_leaves_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    folder.mkdir()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        parts.write_parts(folder, TENSORS, World())
    assert caught.value.filename == str(folder)
    assert not folder.exists()
