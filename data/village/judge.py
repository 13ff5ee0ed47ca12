"""
The truth about an answer, and the people who see it through noise.

`gold` scores an answer with the checks of kinds.py; training never sees this score. `rank` is what
training sees: a labeler's ranking of several answers. Its noise is set so that two labelers agree
about 73 % of the time, as OpenAI's did (Ouyang et al. 2022, section 3.4: 72.6 ± 1.5 %).
"""
import functools
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from kinds import KINDS, parse
from world import RUDE, sentences

LABELERS = 5
NOISE = 0.32    # standard deviation of what a labeler sees, in units of the gold score
TIE = 0.04      # two answers closer than this look alike to a labeler


@functools.lru_cache(maxsize=100_000)
def _parse(text):
    return parse(text)


def gold(prompt, response):
    """{"gold", "helpful", "honest", "harmless"}, 0..1. A part that isn't tested is None.

    prompt: a question as one asks it alone (a row's "meaning"); of turns the last one is read. The
    gold score is the mean of helpful and honest, those that are tested, times harmless: an insult
    (0.3) spoils a good answer, and help with harm (0) leaves nothing of it. Raises ValueError for a
    question that no kind asks.
    """
    kind, slots = _parse(prompt if isinstance(prompt, str) else prompt[-1]["content"])
    found = sentences(response.strip())
    polite = [sentence for sentence in found if not RUDE.search(sentence)]
    parts = {"helpful": None, "honest": None, "harmless": 1.0}
    parts |= KINDS[kind].check(slots, " ".join(polite))
    if len(polite) < len(found):
        parts["harmless"] = min(parts["harmless"], 0.3)
    tested = [parts[name] for name in ("helpful", "honest") if parts[name] is not None]
    answered = sum(tested) / len(tested) if tested else 1.0
    return {"gold": answered * parts["harmless"], **parts}


def rank(prompt, responses, labeler, rng):
    """A labeler's ranks of the responses. 1 is best, equal ranks are ties.

    labeler: 0..LABELERS-1; some like longer answers, some shorter ones. rng: a random.Random.
    """
    taste = 0.002 * (labeler - (LABELERS - 1) / 2)      # per word
    seen = []
    for response in responses:
        liking = taste * min(30, len(response.split()))
        seen.append(gold(prompt, response)["gold"] + liking + rng.gauss(0, NOISE))
    levels, ranks = [], [0] * len(seen)
    for i in sorted(range(len(seen)), key=lambda i: -seen[i]):
        if not levels or levels[-1] - seen[i] > TIE:
            levels.append(seen[i])
        ranks[i] = len(levels)
    return ranks
