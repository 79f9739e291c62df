"""Tasks: their tokens, where these stand in the text, how they are labelled, read back and scored."""

from tokenverse_pp.tasks.base import ScoredExample, Task, TaskSet
from tokenverse_pp.tasks.registry import REGISTRY, build_tasks, load_plugins, register, task_options
from tokenverse_pp.tasks.text import parse, render, transcript_of
from tokenverse_pp.tasks.transcript import Answers, EntitySpan, TaskMark

Entity, Mark, Transcript = EntitySpan, TaskMark, Answers  # their names in the last release

__all__ = [
    "REGISTRY",
    "Answers",
    "EntitySpan",
    "ScoredExample",
    "Task",
    "TaskMark",
    "TaskSet",
    "build_tasks",
    "load_plugins",
    "parse",
    "register",
    "render",
    "task_options",
    "transcript_of",
]
