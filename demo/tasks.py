"""The tasks that the embedded model learns.

One list, in the order of the report. Knows nothing of how often each is drawn (demo/corpus.py).
"""

from __future__ import annotations

from demo import about, arithmetic, needle, sql, tool_calls
from demo.sample import Task

TASKS: tuple[Task, ...] = (sql.TASK, arithmetic.TASK, tool_calls.TASK, needle.TASK, about.TASK)


def task_named(name: str) -> Task:
    """Raises ValueError for a name that no task has."""
    for task in TASKS:
        if task.name == name:
            return task
    raise ValueError(f"task is {name!r}: must be one of {', '.join(task.name for task in TASKS)}")
