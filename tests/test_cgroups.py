"""Memory that the control group of a container leaves, on small trees as the kernel lays them."""

from functools import partial
from pathlib import Path

import pytest
import torch

from advtrain import cgroups, footprint
from advtrain.cgroups import UNBOUND, left

GIB = 2**30


def laid(group: Path, **files: object) -> Path:
    """Files `memory.NAME` of a group."""
    group.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (group / f"memory.{name}").write_text(f"{content}\n")
    return group


def second(mounted: Path, bound: object, used: int, cache: int = 0) -> Path:
    """A group of version 2; half of its cache was read twice. Of tmpfs it holds a quarter of it."""
    stat = [f"anon {used - cache}", f"file {cache + cache // 4}", f"shmem {cache // 4}"]
    stat += [f"inactive_file {cache - cache // 2}", f"active_file {cache // 2}"]
    return laid(mounted, max=bound, current=used, stat="\n".join([*stat, "inactive_anon 7"]))


def first(mounted: Path, bound: int, used: int, cache: int = 0) -> Path:
    """One of version 1, whose cache is that of a group below it."""
    stat = [f"cache {cache}", "inactive_file 0", "active_file 0"]
    stat += [f"total_inactive_file {cache - cache // 2}", f"total_active_file {cache // 2}"]
    files = {"limit_in_bytes": bound, "usage_in_bytes": used, "stat": "\n".join(stat)}
    laid(mounted / "memory", **files)
    return mounted


@pytest.mark.parametrize("version", [first, second])
def test_cache_of_files_counts_as_free(version, tmp_path):
    assert left(version(tmp_path, 4 * GIB, 4 * GIB, 3 * GIB)) == 3 * GIB
    assert left(version(tmp_path, 4 * GIB, 3 * GIB)) == GIB


@pytest.mark.parametrize("version", [first, second])
def test_a_group_at_its_bound_has_nothing_left(version, tmp_path):
    assert left(version(tmp_path, GIB, GIB + 4096)) == 0


@pytest.mark.parametrize("version", [first, second])
def test_counters_that_lag_do_not_give_more_than_the_bound(version, tmp_path):
    assert left(version(tmp_path, GIB, 1000, 5000)) == GIB


def test_groups_without_a_bound_leave_what_the_machine_has(tmp_path):
    assert left(tmp_path) == UNBOUND  # the root of version 2 has no such files
    assert left(second(tmp_path / "v2", "max", 5 * GIB)) == UNBOUND
    pages = 2**63 - 4096  # what version 1 writes for none
    assert left(first(tmp_path / "v1", pages, 5 * GIB, GIB)) == UNBOUND


def test_of_both_versions_the_nearer_bound_counts(tmp_path):
    both = first(second(tmp_path, 8 * GIB, GIB), 4 * GIB, GIB)
    assert left(both) == 3 * GIB


def test_without_statistics_all_that_is_used_counts(tmp_path):
    (second(tmp_path, 4 * GIB, 3 * GIB, 2 * GIB) / "memory.stat").unlink()
    assert left(tmp_path) == GIB


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="a system that does not tell")
def test_a_processor_has_no_more_than_its_container(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "left", partial(left, second(tmp_path, GIB, GIB, 5_000_000)))
    assert footprint.free(torch.device("cpu")) == 5_000_000
