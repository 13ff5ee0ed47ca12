"""
Comparisons as the reward model reads them: token lists with ranks. Nothing here needs a model.

comparisons.py at the top of the project samples the answers and has them ranked.
"""
import math
import random

from data import UserError, half_of, meaning_of, read_ranking


def encode_comparisons(rows, vocab, block, fold=0):
    """Rows of comparisons → [(token lists, ranks, gold scores or None)], and what was dropped.

    fold: 1 or 2 for one half of the prompts, 0 for all. An answer that a prompt has twice is kept
    once. A prompt is dropped if its answers all tie, or if one of them does not fit the block.
    """
    items = []
    dropped = {"identical answers": 0, "prompts without a pair": 0, "too long": 0,
               "tied pairs": 0}
    for n, row in enumerate(rows, 1):
        if fold and half_of(row) != fold - 1:
            continue
        responses, ranks = read_ranking(row, f"comparison {n}")
        golds, eos = row.get("gold"), row.get("eos", [True] * len(responses))
        prompt = vocab.prompt(row["prompt"])

        keep = [i for i, r in enumerate(responses) if r not in responses[:i]]
        kept_ranks = [ranks[i] for i in keep]
        pairs = sum(a < b for a in kept_ranks for b in kept_ranks)
        dropped["identical answers"] += len(responses) - len(keep)
        dropped["tied pairs"] += len(keep) * (len(keep) - 1) // 2 - pairs

        # an answer that was cut off has no end-of-text token, here as in PPO
        answers = [vocab.response(responses[i]) for i in keep]
        tokens = [prompt + (a if eos[i] else a[:-1]) for i, a in zip(keep, answers)]
        lengths = [len(t) for t in tokens]
        if max(lengths) > block or min(lengths) == len(prompt):
            dropped["too long"] += 1
        elif not pairs:
            dropped["prompts without a pair"] += 1
        else:
            items.append((tokens, kept_ranks, golds and [golds[i] for i in keep]))
    return items, dropped


def which_half(fold, judge):
    """The flag --fold → the half of the prompts to train on: 1, 2, or 0 for all.

    Without a judge, the second half trains the reward model that evaluates. The one that PPO uses
    must not have seen it, or the two would make the same mistakes.
    """
    if fold not in ("auto", "all", "1", "2"):
        raise UserError(f"--fold={fold}: give 1, 2, all or auto")
    return {"auto": 0 if judge else 1, "all": 0, "1": 1, "2": 2}[fold]


def labeler_agreement(judge, rows, seed):
    """How often two simulated labelers agree on a pair of answers that neither calls a tie."""
    same = total = 0
    for n, row in enumerate(rows):
        rng = random.Random(f"{seed} agreement {n}")
        responses = row["responses"]
        labelers = rng.sample(range(judge.LABELERS), 2)
        a, b = (judge.rank(meaning_of(row), responses, who, rng) for who in labelers)
        for i in range(len(a)):
            for j in range(i):
                if a[i] != a[j] and b[i] != b[j] and responses[i] != responses[j]:
                    same += (a[i] < a[j]) == (b[i] < b[j])
                    total += 1
    return same / max(1, total)


def share_of_pairs(right, pairs):
    """Of each prompt: how many of its pairs are right, and how many it has → (share, error).

    The error is half of the share's 95 % interval. The pairs of one prompt are not independent,
    so the interval comes from the differences between prompts.
    """
    share = sum(right) / sum(pairs)
    squares = sum((r - share * n) ** 2 for r, n in zip(right, pairs))
    return share, 1.96 * math.sqrt(squares) / sum(pairs)
