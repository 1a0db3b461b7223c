"""Shared by every tier: one thread per process, tiny checkpoints made once."""

from __future__ import annotations

import gc
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from ingress.tokens import Tokenizer

os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported, here and in subprocesses
settings.register_profile("ours", max_examples=50, deadline=None)  # each run draws others
settings.register_profile("simulate", max_examples=10_000, deadline=None, print_blob=True)
settings.load_profile("ours")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process per core, four at most, for whole folders without Ray; else none.

    A few tests end sooner in the process that is there already, and clusters may not run side by side.
    """
    is_whole = all(Path(argument).is_dir() for argument in config.args) and not config.option.keyword
    is_without_ray = "not ray" in config.option.markexpr
    return min(4, len(os.sched_getaffinity(0))) if is_whole and is_without_ray else 0


SLOW_IMPORTS = {  # transformers, torch.optim, torch.testing: seconds, which one process pays for all
    "test_config",
    "test_demo_checkpoint",
    "test_demo_layers",
    "test_demo_precision",
    "test_demo_training",
    "test_exchange",
    "test_experts",
    "test_fp8",
    "test_gate",
    "test_reference",
    "test_rope",
    "test_rows",
    "test_tiny",
    "test_tokens",
}
ASKED_FOR = ("pods", "hosts", "ahead", "contracts")
BEGUN_FIRST = ("test_speculation", "test_exactness")  # longest of the others: the end is for small ones


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long comes first, so that processes end at about the same time.

    What takes minutes comes only where somebody asks for it (make pods, hosts, kernels, contracts).
    """
    for mark in ASKED_FOR:
        if mark not in config.option.markexpr:
            left = [item for item in items if item.get_closest_marker(mark)]
            config.hook.pytest_deselected(items=left)
            items[:] = [item for item in items if item not in left]
    items.sort(key=lambda item: (item.path.stem not in SLOW_IMPORTS, item.path.stem not in BEGUN_FIRST))


class FilesTogether(LoadScopeScheduling):
    """A file stays in one process, for its fixtures; so do those that need the same slow imports.

    Not the simulation, whose tests share nothing and may run for minutes (make simulate).

    xdist's own groups would say it by marks, but write them where pytest 9.2 no longer looks.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        if file.stem == "test_simulation":
            return nodeid
        return "slow imports" if file.stem in SLOW_IMPORTS else str(file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FilesTogether:
    return FilesTogether(config, log)


def pytest_collection_finish() -> None:
    """What the imports made lives to the end: no collection of garbage looks at it again."""
    gc.freeze()


@pytest.fixture(scope="session")
def transformers() -> ModuleType:
    """The reference, imported only where a test asks for it."""
    module = importlib.import_module("transformers")
    module.utils.logging.set_verbosity_error()
    module.utils.logging.disable_progress_bar()
    return module


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A token per byte, beside the specials."""
    from ingress.tokenizer_file import write_byte_tokenizer
    from ingress.tokens import Tokenizer

    directory = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(directory)
    return Tokenizer.from_file(directory / "tokenizer.json")


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
