"""Evaluation: questions about long texts, answers, scores.

| file        | does                                                                             |
|-------------|----------------------------------------------------------------------------------|
| sources     | where questions come from: generated stories, BABILong's files, bAbI's           |
| answering   | reads contexts into memory in blocks and lets the model answer                   |
| answer_log  | questions and answers, kept as they come                                         |
| scoring     | from answers to an `EvalResult`                                                  |
| runner      | `evaluate`: one `EvalResult` per task and length                                 |
| perplexity  | how well texts are predicted, asking nothing                                     |
| progress    | the bar, in tokens                                                               |
| suite       | all that a paper's table needs, in one report                                    |
| tracing     | what memory does while one text is read                                          |
| inspection  | its pictures and numbers                                                         |
| command     | `python -m rmt_jax.evaluate`                                                     |
| session     | one text in memory, kept in a file, asked again                                  |
"""

from rmt_jax.evaluation.runner import EvaluationError, evaluate

__all__ = ["EvaluationError", "evaluate"]
