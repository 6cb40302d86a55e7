"""The tasks on which the chapters train: small, seeded, made of real pictures, digits and series.

Each lives in a file of its own, which ends with its entry in the table of tasks. Any module of the library goes into
the place that a task's network has for one:

>>> from attn_lib import tasks
>>> tasks.list_tasks("se")
['lamplit_digits']
>>> network = tasks.task("lamplit_digits").network("se")
"""

from ._catalog import Task, compare, list_tasks, task

__all__ = ["Task", "compare", "list_tasks", "task"]
