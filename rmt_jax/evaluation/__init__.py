"""Evaluation: questions about long texts, answers, scores.

| file       | does                                                                              |
|------------|-----------------------------------------------------------------------------------|
| texts      | texts of any size as a stream of tokens; records of data files one at a time      |
| questions  | where questions come from: the config's own world, BABILong's files, bAbI's       |
| answering  | reads contexts into memory in blocks and lets the model answer                    |
| cells      | `evaluate`: a score a task and length                                             |
| rows       | what was asked and answered, kept as it comes                                     |
| recall     | one text in memory, kept in a file, asked again                                   |
| inspection | what memory does while a text is read                                             |
"""

from rmt_jax.evaluation.runner import EvaluationError, evaluate

__all__ = ["EvaluationError", "evaluate"]
