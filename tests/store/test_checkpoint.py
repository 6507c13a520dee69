"""What a stage left as it was lies on the disk once; every checkpoint is whole by itself."""

import os
import shutil

import pytest
import torch

from lifelong.store import checkpoint
from lifelong.store.checkpoint import broken, read_checkpoint, write_checkpoint
from lifelong.store.run import RunFolder

CONFIG = {"name": "x", "stages": [{"name": str(i)} for i in range(8)]}


def pairs(stages):
    """State of a method that keeps one pair per stage: A under A, B beside B; and fresh weights."""
    draw = torch.Generator().manual_seed(0)
    every = [
        (torch.randn(4, 200, generator=draw), torch.randn(300, 4, generator=draw)) for _ in range(stages)
    ]
    return {
        "past/down": torch.cat([down for down, _ in every]),
        "past/up": torch.cat([up for _, up in every], dim=1),
        "params/w": torch.full((50,), float(stages)),
        "frozen": torch.arange(1000.0),
    }


def size(folder):
    """Bytes on the disk, each file once."""
    files = {file.stat().st_ino: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    return sum(files.values())


def write(folder, stages, before=None):
    folder.mkdir()
    write_checkpoint(folder, pairs(stages), {"stage": stages}, before)
    return folder


def test_every_stage_comes_back_bit_for_bit(tmp_path):
    before = None
    for stage in range(1, 6):
        before = write(tmp_path / str(stage), stage, before)
    for stage in range(1, 6):
        assert broken(tmp_path / str(stage)) is None
        found, tree = read_checkpoint(tmp_path / str(stage))
        assert tree == {"stage": stage} and set(found) == set(pairs(stage))
        for name, value in pairs(stage).items():
            assert torch.equal(found[name], value) and found[name].is_contiguous()


def test_the_disk_holds_each_pair_once(tmp_path):
    pair = 4 * (4 * 200 + 300 * 4)
    together, apart = tmp_path / "together", tmp_path / "apart"
    together.mkdir(), apart.mkdir()
    before = None
    for stage in range(1, 11):
        before = write(together / str(stage), stage, before)
        write(apart / str(stage), stage)
    assert 10 * pair + 4000 < size(together) < 10 * pair + 4000 + 10 * 3000
    assert size(apart) > 55 * pair  # control: 1 + 2 + ... + 10 pairs


def test_an_earlier_checkpoint_may_go(tmp_path):
    for stage in (1, 2, 3):
        write(tmp_path / str(stage), stage, tmp_path / str(stage - 1) if stage > 1 else None)
    shutil.rmtree(tmp_path / "1")
    shutil.rmtree(tmp_path / "2")
    assert broken(tmp_path / "3") is None
    assert torch.equal(read_checkpoint(tmp_path / "3")[0]["past/up"], pairs(3)["past/up"])


@pytest.mark.parametrize("change", ["value", "shrunk", "dtype", "two dimensions", "sign of zero"])
def test_what_has_changed_is_written_anew(tmp_path, change):
    first = torch.zeros(40, 40)
    first[0, 0] = 1
    second = {
        "value": first + 1, "shrunk": first[:30], "dtype": first.double(),
        "two dimensions": torch.zeros(41, 41), "sign of zero": torch.where(first == 0, -0.0, first),
    }[change]  # fmt: skip
    for name, value, before in (("1", first, None), ("2", second, tmp_path / "1")):
        (tmp_path / name).mkdir()
        write_checkpoint(tmp_path / name, {"w": value}, {}, before)
    assert not list((tmp_path / "2").glob("*.shared"))
    found = read_checkpoint(tmp_path / "2")[0]["w"]
    assert found.dtype == second.dtype and torch.equal(found.view(torch.uint8), second.view(torch.uint8))


def test_growth_along_another_dimension_is_written_anew(tmp_path):
    """Pieces are joined along one dimension."""
    values = [torch.zeros(20, 20), torch.zeros(30, 20), torch.zeros(30, 30)]
    before = None
    for i, value in enumerate(values):
        (tmp_path / str(i)).mkdir()
        write_checkpoint(tmp_path / str(i), {"w": value}, {}, before)
        before = tmp_path / str(i)
        assert torch.equal(read_checkpoint(before)[0]["w"], value)
    assert [len(list((tmp_path / str(i)).glob("*.shared"))) for i in range(3)] == [0, 1, 0]


def test_file_systems_without_links_get_copies(tmp_path, monkeypatch):
    def no_link(*names):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    for stage in (1, 2):
        write(tmp_path / str(stage), stage, tmp_path / "1" if stage > 1 else None)
    (shared,) = (tmp_path / "2").glob("*.shared")
    assert shared.stat().st_nlink == 1 and broken(tmp_path / "2") is None
    assert torch.equal(read_checkpoint(tmp_path / "2")[0]["past/down"], pairs(2)["past/down"])


@pytest.mark.parametrize("part", ["pieces.json", "*.shared", "state.safetensors"])
def test_damage_to_any_part_is_found(tmp_path, part):
    for stage in (1, 2):
        write(tmp_path / str(stage), stage, tmp_path / "1" if stage > 1 else None)
    (file,) = (tmp_path / "2").glob(part)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    assert file.name in broken(tmp_path / "2")


def test_damage_is_not_shared_with_later_stages(tmp_path):
    run = RunFolder(tmp_path / "run", CONFIG, [str(i) for i in range(8)])
    run.save(0, None, pairs(1), {})
    run.close()
    file = run.stage(1) / "checkpoint/state.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    run = RunFolder(tmp_path / "run", CONFIG, [str(i) for i in range(8)])
    run.save(1, None, pairs(2), {})
    there = run.stage(2) / "checkpoint"
    assert broken(there) is None and not list(there.glob("*.shared"))
    run.save(2, None, pairs(3), {})
    assert list((run.stage(3) / "checkpoint").glob("*.shared"))  # control


def test_checkpoints_inside_a_stage_share_as_well(tmp_path):
    run = RunFolder(tmp_path / "run", CONFIG, [str(i) for i in range(8)])
    run.save(0, None, pairs(1), {})
    run.save(1, 5, pairs(1), {})
    position = run.latest()
    assert position.step == 5 and list(position.folder.glob("*.shared"))
    assert torch.equal(run.load(position)[0]["past/up"], pairs(1)["past/up"])


def test_an_older_checkpoint_reads(tmp_path):
    """Before there were pieces."""
    from safetensors.torch import save_file

    folder = tmp_path / "old"
    folder.mkdir()
    save_file(pairs(2), folder / "state.safetensors")
    (folder / "state.json").write_text('{"k": 1}')
    parts = {name: checkpoint.checksum(folder / name) for name in ("state.safetensors", "state.json")}
    (folder / "manifest.json").write_text(str({"format": 1, "parts": parts}).replace("'", '"'))
    found, tree = read_checkpoint(folder)
    assert tree == {"k": 1} and torch.equal(found["past/up"], pairs(2)["past/up"])
    later = write(tmp_path / "later", 3, folder)
    assert torch.equal(read_checkpoint(later)[0]["past/up"], pairs(3)["past/up"])
    assert list(later.glob("*.shared"))
