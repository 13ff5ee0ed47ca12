"""
Four kinds of tasks of the package reasoning-gym, and its own verifiers as rewards for PPO.

    --reward=data/gym/verifier.py:exact     1 for an answer that the verifier calls right, else 0
    --reward=data/gym/verifier.py:credit    the verifier's score, with partial credit

The package asks in sentences meant for large models. Here a task is what is in them, in a few
characters: "3 + 4 =" is answered by "7". Verifiers see an answer in the form they ask for.
"""
import functools
import os
from dataclasses import dataclass
from typing import Callable

from data import UserError, read_jsonl

HERE = os.path.dirname(os.path.abspath(__file__))


def package():
    """The module reasoning_gym. Raises UserError if it is not installed."""
    try:
        import reasoning_gym
    except ImportError:
        raise UserError("the tasks and their verifiers come from a package that is not installed: "
                        "pip install reasoning-gym") from None
    return reasoning_gym


# ---- a kind: how large its tasks are, how they are asked, and the mistake that people make ----

@dataclass
class Kind:
    config: dict            # of the package's data set of this name
    ask: Callable           # its metadata of a task → the prompt
    mistake: Callable       # (metadata, right answer) → a wrong one


def other_sign(meta, right):
    """The last term is added where it is to be subtracted, or the other way round."""
    *_, sign, term = meta["expression"].split()
    return str(int(right) + 2 * int(term) * (1 if sign == "-" else -1))


def other_order(meta, right):
    return ", ".join(right.split(", ")[::-1])


def one_too_many(meta, right):
    return str(int(right) + 1)


def last_left_out(meta, right):
    return right[:-1]


def plain(numbers):
    """["1.0", "27.0"] → "1, 27" """
    return ", ".join(number.removesuffix(".0") for number in numbers)


KINDS = {
    "chain_sum": Kind({"min_terms": 2, "max_terms": 3, "max_digits": 1},
                      lambda meta: f"{meta['expression']} =", other_sign),
    "letter_counting": Kind({"min_words": 3, "max_words": 4},
                            lambda meta: f"{meta['target_letter']} in: {' '.join(meta['span'])}",
                            one_too_many),
    "number_sorting": Kind({"max_numbers": 3, "max_decimals": 0, "min_value": 0, "max_value": 99},
                           lambda meta: f"{meta['direction']}: {plain(meta['original_numbers'])}",
                           other_order),
    "spell_backward": Kind({"max_word_len": 6},
                           lambda meta: f"backward: {meta['word']}", last_left_out)}


def right_answer(kind, entry):
    """The package's answer to a task. A sorted list has no brackets and quotes here."""
    if kind == "number_sorting":
        return plain(entry["metadata"]["sorted_numbers"])
    return entry["answer"]


# ---- what the verifiers say ----

@functools.cache
def tasks():
    """{prompt: its row in prompts.jsonl or demonstrations.jsonl}"""
    paths = [os.path.join(HERE, name) for name in ("prompts.jsonl", "demonstrations.jsonl")]
    return {row["prompt"]: row for path in paths
            for row in read_jsonl(path, ["prompt", "kind", "entry"])}


@functools.cache
def verifier(kind):
    return package().get_score_answer_fn(kind)


def credit(prompt, response):
    """The verifier's score, 0 to 1. Raises UserError if the prompt is no task of the folder."""
    if prompt not in tasks():
        raise UserError(f"{prompt!r} is no task of the files in data/gym")
    kind, entry = tasks()[prompt]["kind"], tasks()[prompt]["entry"]
    answer = f"[{response}]" if kind == "number_sorting" else response
    return verifier(kind)(answer, entry)


def exact(prompt, response):
    """1 if the verifier calls the answer right, else 0."""
    return float(credit(prompt, response) == 1)
