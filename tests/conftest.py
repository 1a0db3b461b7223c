"""Shared by every tier: one thread per process, tiny checkpoints made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported, here and in subprocesses


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process per core, four at most, for whole folders without Ray; else none.

    A few tests end sooner in the process that is there already, and clusters may not run side by side.
    """
    is_whole = all(Path(argument).is_dir() for argument in config.args) and not config.option.keyword
    is_without_ray = "not ray" in config.option.markexpr
    return min(4, len(os.sched_getaffinity(0))) if is_whole and is_without_ray else 0


TRANSFORMERS = {
    "test_demo_checkpoint",
    "test_reference",
    "test_tiny",
}  # importing it takes seconds: once is enough


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file stays in one process, for its fixtures; those that import transformers share one."""
    for item in items:
        group = "transformers" if item.path.stem in TRANSFORMERS else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def tiny_v32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deepseek_v32 checkpoint whose index_topk (32) is far below the test contexts."""
    from model.tiny import write_tiny  # late: the process that hands out the tests needs no torch

    directory = tmp_path_factory.mktemp("tiny-v32")
    write_tiny(directory, preset="test", seed=7)
    return directory


@pytest.fixture(scope="session")
def tiny_v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without an indexer: dense MLA."""
    from model.tiny import write_tiny

    directory = tmp_path_factory.mktemp("tiny-v3")
    write_tiny(directory, preset="test", seed=7, indexer=False)
    return directory
