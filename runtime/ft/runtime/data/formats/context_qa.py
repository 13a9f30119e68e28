"""`context_qa` with its loaders: a question about a text that comes with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ft.recipes.plan import DatasetPlan
from ft.runtime.data.row import Row, text_column
from ft.runtime.data.styles import CHAT, answered

PREAMBLE: Final = "Use the following contextual information to concisely answer the question.\n"
UNANSWERABLE: Final = (
    "The context provided does not contain any information about your inquiry. "
    "Therefore, I'm unable to answer your question based on the given context."
)


def rows(example: Mapping[str, Any], spec: DatasetPlan) -> Row:
    """Text and question, then the answer, which is trained. Raises: RowError if a column is missing."""
    if spec.type == "context_qa.load_v2":
        context, question = text_column(example, "context"), text_column(example, "question")
        answer = text_column(example, "answer")
        return answered(f"Context: {context}\nQuestion: {question}\n", f"Answer: {answer}")
    article = text_column(example, "article")
    if spec.type == "context_qa.load_404":
        question, answer = text_column(example, "unanswerable_question"), UNANSWERABLE
    else:
        question, answer = text_column(example, "question"), text_column(example, "answer")
    return answered(CHAT.prompt(f"{article}\n===\n{question}", "", PREAMBLE), answer)
