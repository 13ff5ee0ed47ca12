"""The gold score is exact match, which PPO is trained on unless --reward names something else."""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from verifier import exact

LABELERS = 1


def gold(prompt, response):
    """{"gold": 1.0 or 0.0, …}. The other parts are not tested."""
    return {"gold": exact(prompt, response), "helpful": None, "honest": None, "harmless": None}


def rank(prompt, responses, labeler, rng):
    """Right answers are 1, wrong ones 2: for a reward model in place of the verifier."""
    return [2 - int(exact(prompt, response)) for response in responses]
