"""
Stage 2a: comparisons, what the reward model learns from. K answers to a prompt are sampled and ranked.

reward.py calls this; nothing here is trained. Who ranks: simulated labelers where the data folder has a judge.py;
elsewhere a person's real reply is taken to beat sampled answers, and (--others) real replies to something else. Who answers: the SFT model, and in a further round
the newest policy (Ouyang et al. 2022, section 3.1). The rankings of each round are left in a file of OUT, in the form
in which a person could have written them: comparisons.jsonl, comparisons-2.jsonl and so on.
"""
import json
import os
import random

from common import RANK, all_gather, bar, by_length, generator, in_round, model_from, policy_before, shard     # before torch: it says how threads wait
from data import UserError, half_of, read_heldout, read_jsonl, read_ranking, replacing

import torch


def sample_answers(model, prompts, run, k, label, temperature=1.0):
    """k answers of the model to each of the prompts (token lists) → list of k token lists each. The label names bar and noise."""
    rows = [i for i in range(len(prompts)) for _ in range(k)]
    answers = [[] for _ in prompts]
    chunks = by_length([len(prompts[i]) for i in rows], 512)
    found, share = [], shard(list(enumerate(chunks)))
    for i in bar(len(share), 0, label):
        n, chunk = share[i]
        with run.cast:
            found.append(model.generate([prompts[rows[j]] for j in chunk.tolist()], run.config.max_new_tokens, temperature, eos=run.vocab.eos,
                                        generator=generator(run.config.seed, label, n)))
    for chunk, news in zip(chunks, all_gather(found)):
        for j, new in zip(chunk.tolist(), news):
            answers[rows[j]].append(new)
    return answers


def sampled_comparisons(run, config, judge, sources, n=1):
    """Sample answers from the policy that round n begins with and rank them → rows as in comparisons.jsonl, written to OUT as well.

    Those of the rounds before this run's are taken as they are. Raises UserError if they are not there."""
    policy, path, old = policy_before(n), os.path.join(config.out, in_round("comparisons", n) + ".jsonl"), n < config.round
    of = f"{run.parents[policy]['hash']} {config.prompts} {config.heldout} {config.answers} {config.max_new_tokens} {sources} {config.seed}" + f" {config.others}" * (config.others > 0)
    if os.path.exists(path) and (old or not config.fresh):
        rows = read_jsonl(path, ["prompt", "responses", "ranks"])
        if rows[0].get("rows") == len(rows) and (rows[0].get("of") == of or old and rows[0].get("of", "").split()[:1] == of.split()[:1]):
            print(f"taking the answers sampled before, from {path}")
            return rows
    if old:
        raise UserError(f"{path}, the comparisons of round {n}, is missing, cut off or of another {policy}.pt than the one there is now: "
                        f"{' '.join(['python reward.py', *[f'--round={n}'] * (n > 1)])} --fresh makes it again; --sources=file does without")
    model = model_from(run.parents[policy]).to(run.device)
    given_in = os.path.join(run.folder, "prompts.jsonl" if "judge" in sources else "demonstrations.jsonl")
    fields = ["prompt"] if "judge" in sources else ["prompt", "response"]
    rows = []
    for split, size in (("train", config.prompts), ("heldout", config.heldout)):
        given = read_jsonl(given_in, fields, split) if split == "train" else read_heldout(given_in, fields)
        order = torch.randperm(len(given), generator=generator(config.seed, in_round("prompts", n), split))[:size].tolist()
        given = [given[i] for i in order]
        k = config.answers if "judge" in sources else config.answers - 1 - config.others
        if n > 1 and not k:
            raise UserError(f"--answers={config.answers} --others={config.others} leave no answer of {policy}.pt's to rank, which is what a further round is for: give more --answers")
        encoded = [run.vocab.prompt(r["prompt"]) for r in given]
        for i, (row, answers) in enumerate(zip(given, sample_answers(model, encoded, run, k, in_round(f"answers, {split}", n)))):
            responses = [run.vocab.decode(a) for a in answers]
            more = {}
            if "judge" in sources:
                rng = random.Random(in_round(f"{config.seed} {split} {i}", n))
                labeler = rng.randrange(judge.LABELERS)
                ranks = judge.rank(row["prompt"], responses, labeler, rng)
                more = {"labeler": labeler, "gold": [judge.gold(row["prompt"], r)["gold"] for r in responses]}    # for the ceiling
            else:
                # every reply is the best one to its own prompt and comes up as often as a loser, so that nothing in it alone tells which it is
                others = [given[i - n] for n in range(1, config.others + 1)]
                others = [o["response"] for o in others if o["prompt"] != row["prompt"] and len(encoded[i] + run.vocab.response(o["response"])) <= model.config.block_size]
                responses = [row["response"], *others, *responses]
                ranks = [1] + [2] * (len(responses) - 1)
            more["eos"] = [True] * (len(responses) - k) + [a[-1] == run.vocab.eos for a in answers]
            rows.append({"prompt": row["prompt"], "responses": responses, "ranks": ranks, "split": split, **more, "of": of})
    if RANK:
        return rows
    with replacing(path) as f:
        f.writelines(json.dumps({**r, "rows": len(rows)}) + "\n" for r in rows)
    return rows


def encode_comparisons(rows, vocab, block, fold=0):
    """Rows of comparisons → list of (token lists, ranks, gold or None), and counts of what was dropped.

    An answer given twice to a prompt is kept once; a prompt whose answers all tie is dropped, as is one that does not fit.
    """
    items, dropped = [], {"identical answers": 0, "prompts without a pair": 0, "too long": 0, "tied pairs": 0, "pairs": 0}
    for n, row in enumerate(rows, 1):
        if fold and half_of(row) != fold - 1:
            continue
        responses, ranks = read_ranking(row, f"comparison {n}")
        prompt, golds, eos = vocab.prompt(row["prompt"]), row.get("gold"), row.get("eos", [True] * len(responses))
        first = {}
        for i, r in enumerate(responses):
            first.setdefault(r, i)
        dropped["identical answers"] += len(responses) - len(first)
        keep = sorted(first.values())
        tokens = [prompt + vocab.response(responses[i])[:None if eos[i] else -1] for i in keep]
        kept = [ranks[i] for i in keep]
        pairs = sum(a < b for a in kept for b in kept)
        dropped["tied pairs"] += len(kept) * (len(kept) - 1) // 2 - pairs
        if max(map(len, tokens)) > block or min(map(len, tokens)) == len(prompt):
            dropped["too long"] += 1
        elif not pairs:
            dropped["prompts without a pair"] += 1
        else:
            dropped["pairs"] += pairs
            items.append((tokens, kept, golds and [golds[i] for i in keep]))
    return items, dropped


def which_half(fold, judge):
    """The flag --fold → 1, 2 or 0 for all. Without a judge the second half is for the reward model that evaluates: PPO's must not see it."""
    if fold not in ("auto", "all", "1", "2"):
        raise UserError(f"--fold={fold}: give 1, 2, all or auto")
    return {"auto": 0 if judge else 1, "all": 0, "1": 1, "2": 2}[fold]


def agreement(judge, rows, seed):
    """How often two labelers agree on a pair that neither calls a tie, over the held-out answers."""
    same = n = 0
    for i, row in enumerate(rows):
        rng = random.Random(f"{seed} agreement {i}")
        a, b = (judge.rank(row["prompt"], row["responses"], who, rng) for who in rng.sample(range(judge.LABELERS), 2))
        for x in range(len(a)):
            for y in range(x):
                if a[x] != a[y] and b[x] != b[y] and row["responses"][x] != row["responses"][y]:
                    same, n = same + ((a[x] < a[y]) == (b[x] < b[y])), n + 1
    return same / max(1, n)
