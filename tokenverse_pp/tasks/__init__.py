"""Tasks: their tokens, the tokens' order in the text, labels, parsing and scoring."""

from tokenverse_pp.tasks.base import ScoredExample, Task, TaskSet
from tokenverse_pp.tasks.registry import REGISTRY, build_tasks, load_plugins, register, task_options
from tokenverse_pp.tasks.result import parse, render, transcript_of
from tokenverse_pp.tasks.transcript import Answers, Entity, EntitySpan, Mark, TaskMark, Transcript

__all__ = [
    "REGISTRY",
    "Answers",
    "Entity",
    "EntitySpan",
    "Mark",
    "ScoredExample",
    "Task",
    "TaskMark",
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
