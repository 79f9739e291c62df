"""Tasks: their tokens, the tokens' order in the text, labels, parsing and scoring."""

from tokenverse_pp.tasks.base import ScoredExample, Task, TaskSet
from tokenverse_pp.tasks.registry import REGISTRY, build_tasks, load_plugins, parse, register, render, task_options
from tokenverse_pp.tasks.transcript import Answers, EntitySpan, Mark, transcript_of

Entity, Transcript = EntitySpan, Answers  # their names in the last release

__all__ = [
    "REGISTRY",
    "Answers",
    "Entity",
    "EntitySpan",
    "Mark",
    "ScoredExample",
    "Task",
    "TaskSet",
    "Transcript",
    "build_tasks",
    "load_plugins",
    "parse",
    "register",
    "render",
    "task_options",
    "transcript_of",
]
