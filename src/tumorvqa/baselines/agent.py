"""An agent with tools: it runs each question's program on what its masks say, and guesses where they say nothing."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from random import Random

from tumorvqa.asking.ask import answered
from tumorvqa.asking.look import NotAsked
from tumorvqa.measurements import Measurements
from tumorvqa.question import Prediction, Question
from tumorvqa.rules.packs import Pack

LETTERS = "ABCDEFGH"


def agent(
    questions: Sequence[Question],
    measured: Mapping[str, Measurements],
    pack: Pack,
    free: bool = False,
    seed: int = 0,
) -> list[Prediction]:
    """Letters, or with `free` answers in words. `measured` holds what the agent's own masks give for each case: the
    truth's for the oracle, perturbed or made from HU for others, none for an agent without masks.
    """
    predictions = []
    for question in questions:
        guess = LETTERS[Random(f"{seed} {question.qid}").randrange(len(question.options))]
        said = None if free else guess
        if question.case in measured:
            with suppress(NotAsked):  # its masks do not say: it guesses
                answer = answered(question, measured[question.case], pack)
                said = answer.text if free else LETTERS[answer.index] if answer.index >= 0 else guess
        predictions.append(Prediction(question.qid, said))
    return predictions
