"""Question-and-answer rows of a user's own (`config.data.questions`).

| file    | does                                                                        |
|---------|-----------------------------------------------------------------------------|
| readers | files, datasets on the hub and TensorFlow Datasets as records, one at a time |
| layouts | a record as a `Row`: context, question, right answers                       |
| store   | rows of all splits, contexts tokenised once, mapped from disk               |
"""
