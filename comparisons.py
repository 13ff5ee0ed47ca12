"""
Stage 2a: comparisons, which the reward model learns from. K answers to a prompt are sampled and
ranked. reward.py calls this; nothing here is trained.

Who ranks: simulated labelers, where the data folder has a judge.py. Elsewhere a demonstration
counts as better than sampled answers, and with --others as better than other prompts' ones.
Who answers: SFT, and in a further round the newest policy (Ouyang et al. 2022, section 3.1). The
rankings stay in OUT as comparisons.jsonl, comparisons-2.jsonl and so on, in the form in which a
person could have written them.
"""
import json
import os
import random

import torch

import sampling
from common import by_length, generator
from data import UserError, meaning_of, read_heldout, read_jsonl, record, replacing
from plumbing.processes import RANK, all_gather, shard
from plumbing.run import progress_bar
from plumbing.stages import in_round, policy_before, script_of


def sample_answers(model, prompts, run, k, label, temperature=1.0):
    """k answers to each of the prompts (token lists) → for each prompt a list of k token lists.

    label: names the progress bar and the noise.
    """
    if not k:
        return [[] for _ in prompts]
    rows = [i for i in range(len(prompts)) for _ in range(k)]
    chunks = by_length([len(prompts[i]) for i in rows], 512)
    my_chunks, sampled = shard(list(enumerate(chunks))), []
    for i in progress_bar(len(my_chunks), 0, label):
        n, chunk = my_chunks[i]
        sampled.append(sampling.generate(
            model, [prompts[rows[j]] for j in chunk.tolist()], run.config.max_new_tokens,
            temperature, eos=run.vocab.eos, generator=generator(run.config.seed, label, n)))
    answers = [[] for _ in prompts]
    for chunk, responses in zip(chunks, all_gather(sampled)):
        for j, response in zip(chunk.tolist(), responses):
            answers[rows[j]].append(response)
    return answers


def gather_comparisons(run, judge):
    """The rows of comparisons that --sources names → a list for each round.

    Raises UserError if the sources don't exist or can't be combined.
    """
    config, file = run.config, os.path.join(run.folder, "comparisons.jsonl")
    sources = config.sources
    if sources == "auto":
        sources = ("judge" if judge else
                   "demonstrations+file" if os.path.exists(file) else "demonstrations")
    names = sources.split("+")
    if unknown := set(names) - {"judge", "demonstrations", "file"}:
        raise UserError(f"--sources={sources}: {', '.join(unknown)} is not one of judge, "
                        f"demonstrations, file")
    if "judge" in names and ("demonstrations" in names or not judge):
        reason = f"{run.folder} has no judge.py" if not judge else "not both of them can rank"
        raise UserError(f"--sources={sources}: {reason}; take one of judge and demonstrations")
    rounds = [read_jsonl(file, ["prompt", "responses|chosen"])] if "file" in names else []
    if sources != "file":
        rounds += [sampled_comparisons(run, judge, sources, n) for n in range(1, config.round + 1)]
    return rounds


def sampled_comparisons(run, judge, sources, n=1):
    """Round n's comparisons, as rows of a comparisons.jsonl, which is written to OUT as well.

    Those that are there already are used again. Raises UserError if an earlier round's are not.
    """
    config, policy = run.config, policy_before(n)
    path = os.path.join(config.out, in_round("comparisons", n) + ".jsonl")
    is_earlier = n < config.round
    source = "prompts.jsonl" if "judge" in sources else "demonstrations.jsonl"
    # the policy's hash, then the settings
    made_by = " ".join(map(str, [
        run.parents[policy]["hash"], config.prompts, config.heldout, config.answers,
        config.max_new_tokens, sources, config.seed,
        record(os.path.join(run.folder, source)), *([config.others] if config.others else [])]))
    if os.path.exists(path) and (is_earlier or not config.fresh):
        rows = read_jsonl(path, ["prompt", "responses", "ranks"])
        there = rows[0].get("of", "")
        same_policy = there.split()[:1] == made_by.split()[:1]
        if rows[0].get("rows") == len(rows) and (
                there == made_by or is_earlier and same_policy):
            print(f"taking the answers sampled before, from {path}")
            return rows
    if is_earlier:
        again = " ".join(["python", *script_of(in_round("reward", n)), "--fresh"])
        raise UserError(f"{path}, the comparisons of round {n}, is missing, cut off, or of another "
                        f"{policy}.pt than the one there is now: {again} makes it again; "
                        f"--sources=file does without")

    model = run.load_model(policy)
    rows = [row for split in ("train", "heldout")
            for row in compare_answers(model, run, judge, sources, n, split)]
    if RANK:
        return rows
    with replacing(path) as f:
        f.writelines(json.dumps({**row, "of": made_by, "rows": len(rows)}) + "\n" for row in rows)
    return rows


def compare_answers(model, run, judge, sources, n, split):
    """Sample and rank answers to the prompts of a split → rows of a comparisons.jsonl."""
    config, vocab, by_judge = run.config, run.vocab, "judge" in sources
    name, fields = (("prompts.jsonl", ["prompt"]) if by_judge else
                    ("demonstrations.jsonl", ["prompt", "response"]))
    path = os.path.join(run.folder, name)
    given = read_jsonl(path, fields, split) if split == "train" else read_heldout(path, fields)
    size = config.prompts if split == "train" else config.heldout
    order = torch.randperm(len(given), generator=generator(
        config.seed, in_round("prompts", n), split))[:size].tolist()
    given = [given[i] for i in order]
    k = config.answers - (0 if by_judge else 1 + config.others)
    if n > 1 and not k:
        raise UserError(f"--answers={config.answers} --others={config.others} leave no answer of "
                        f"the policy's to rank, which is what a further round is for: give more "
                        f"--answers")
    prompts = [vocab.prompt(row["prompt"]) for row in given]
    answers = sample_answers(model, prompts, run, k, in_round(f"answers, {split}", n))

    rows = []
    for i, row in enumerate(given):
        responses, more = [vocab.decode(a) for a in answers[i]], {}
        if by_judge:
            rng = random.Random(in_round(f"{config.seed} {split} {i}", n))
            labeler = rng.randrange(judge.LABELERS)
            ranks = judge.rank(meaning_of(row), responses, labeler, rng)
            # for the ceiling of reward.py's accuracy, never to train
            gold = [judge.gold(meaning_of(row), r)["gold"] for r in responses]
            more = {"meaning": meaning_of(row)} if "meaning" in row else {}
            more |= {"labeler": labeler, "gold": gold}
        else:
            room = model.config.block_size - len(prompts[i])
            real = [row["response"], *other_replies(given, i, config.others, vocab, room)]
            responses = real + responses
            ranks = [1] + [2] * (len(responses) - 1)
        ended = [answer[-1] == vocab.eos for answer in answers[i]]
        more["eos"] = [True] * (len(responses) - len(ended)) + ended
        rows.append({"prompt": row["prompt"], "responses": responses, "ranks": ranks,
                     "split": split, **more})
    return rows


def other_replies(given, i, n, vocab, room):
    """Real replies to the n prompts before the i-th, where they are other prompts and fit.

    So every reply is the best one to its own prompt and equally often a worse one to another:
    nothing in the reply alone tells which it is.
    """
    others = [given[(i - j) % len(given)] for j in range(1, n + 1)]
    return [row["response"] for row in others if row["prompt"] != given[i]["prompt"]
            and len(vocab.response(row["response"])) <= room]
