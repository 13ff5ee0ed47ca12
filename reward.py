"""
Stage 2: the reward model. Ranked answers in, a network that scores an answer with one number out.

    python reward.py                       # samples answers from sft.pt, has them ranked, trains: about two minutes
    python reward.py --sources=file        # trains on the folder's comparisons.jsonl, without sampling
    python reward.py --answers=9 --epochs=2

K answers to a prompt are ranked; all their K(K−1)/2 pairs form one batch element, and each answer goes through
the network once (Ouyang et al. 2022, section 3.5). Who ranks: simulated labelers where the data folder has a
judge.py; elsewhere a person's real reply is taken to beat an answer sampled from the SFT model.
"""
import json
import math
import os
import random
from dataclasses import dataclass

from common import (RANK, Common, Run, adamw, all_gather, all_reduce, bar, by_length, cosine, entry, epoch_batches, generator,
                    model_from, pad, parse, shard, update)     # before torch: it says how threads wait
from data import UserError, half_of, load_judge, read_heldout, read_jsonl, read_ranking, replacing
from model import ScalarGPT

import torch
import torch.nn.functional as F


@dataclass
class Config(Common):
    prompts: int = 12000        # training prompts to sample answers for
    heldout: int = 900          # held-out prompts, to measure accuracy on
    answers: int = 4            # K, answers a prompt; the paper has 4 to 9
    sources: str = "auto"       # where comparisons come from: judge, demonstrations, file, or several joined by +
    fold: str = "auto"          # the half of the comparisons to train on, 1 or 2, or all; auto: all where a judge evaluates, else 1
    name: str = "reward"        # of the checkpoint in OUT
    epochs: int = 1             # more overfit, the paper says
    batch: int = 16             # prompts a step, with all their pairs
    micro: int = 0              # prompts a forward pass, to save memory (gradients add up); 0 is the whole batch
    lr: float = 6e-4            # peak learning rate: cosine to a tenth
    weight_decay: float = 0.1   # on matrices
    warmup: int = 10            # steps


SMOKE = {"prompts": 64, "heldout": 32, "answers": 4}


def ranking_loss(scores, ranks):
    """Mean of −log σ(r_better − r_worse) over all pairs of the batch (Ouyang et al. 2022, eq. 1), in nats.

    scores (B, K), ranks (B, K): 1 is best, equal ranks are ties and make no pair, rank 0 is an empty slot, whose
    score is ignored even if it is NaN. No pair at all gives 0, still differentiable.
    """
    better = better_pairs(ranks)
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    scores = torch.where(ranks > 0, scores, torch.zeros_like(scores))
    margin = scores[:, :, None] - scores[:, None, :]                    # (B, K, K): row's score − column's
    losses = torch.where(better, F.softplus(-margin), torch.zeros_like(margin))
    return losses.sum() / better.sum().clamp(min=1)


def better_pairs(ranks):
    """ranks (B, K) → (B, K, K) bool: the row's answer was ranked above the column's."""
    real = ranks > 0
    return (ranks[:, :, None] < ranks[:, None, :]) & real[:, :, None] & real[:, None, :]


def accuracy(scores, ranks):
    """Share of pairs that the scores order as the ranks do, equal scores counting half → (share, number of pairs)."""
    better = better_pairs(ranks)
    margin = scores[:, :, None] - scores[:, None, :]
    right = (margin > 0).float() + 0.5 * (margin == 0).float()
    n = int(better.sum())
    return (right[better].sum().item() / n if n else float("nan")), n


# ---- comparisons ----

def sample_answers(model, prompts, run, k, label):
    """k answers of the model to each of the prompts (token lists) → list of k token lists each."""
    rows = [i for i in range(len(prompts)) for _ in range(k)]
    answers = [[] for _ in prompts]
    chunks = by_length([len(prompts[i]) for i in rows], 512)
    found, share = [], shard(list(enumerate(chunks)))
    for i in bar(len(share), 0, label):
        n, chunk = share[i]
        with run.cast:
            found.append(model.generate([prompts[rows[j]] for j in chunk.tolist()], run.config.max_new_tokens, eos=run.vocab.eos,
                                        generator=generator(run.config.seed, label, n)))
    for chunk, news in zip(chunks, all_gather(found)):
        for j, new in zip(chunk.tolist(), news):
            answers[rows[j]].append(new)
    return answers


def sampled_comparisons(run, config, judge, sources):
    """Sample answers from the SFT model and rank them → rows as in comparisons.jsonl, written to OUT as well."""
    path = os.path.join(config.out, "comparisons.jsonl")
    of = f"{run.parents['sft']['hash']} {config.prompts} {config.heldout} {config.answers} {config.max_new_tokens} {sources} {config.seed}"
    if os.path.exists(path) and not config.fresh:
        rows = read_jsonl(path, ["prompt", "responses", "ranks"])
        if rows[0].get("of") == of and rows[0].get("rows") == len(rows):
            print(f"taking the answers sampled before, from {path}")
            return rows
    sft = model_from(run.parents["sft"]).to(run.device)
    given_in = os.path.join(run.folder, "prompts.jsonl" if "judge" in sources else "demonstrations.jsonl")
    fields = ["prompt"] if "judge" in sources else ["prompt", "response"]
    rows = []
    for split, n in (("train", config.prompts), ("heldout", config.heldout)):
        given = read_jsonl(given_in, fields, split) if split == "train" else read_heldout(given_in, fields)
        order = torch.randperm(len(given), generator=generator(config.seed, "prompts", split))[:n].tolist()
        given = [given[i] for i in order]
        k = config.answers if "judge" in sources else config.answers - 1
        encoded = [run.vocab.prompt(r["prompt"]) for r in given]
        for i, (row, answers) in enumerate(zip(given, sample_answers(sft, encoded, run, k, f"answers, {split}"))):
            responses = [run.vocab.decode(a) for a in answers]
            more = {}
            if "judge" in sources:
                rng = random.Random(f"{config.seed} {split} {i}")
                labeler = rng.randrange(judge.LABELERS)
                ranks = judge.rank(row["prompt"], responses, labeler, rng)
                more = {"labeler": labeler, "gold": [judge.gold(row["prompt"], r)["gold"] for r in responses]}    # for the ceiling
            else:
                responses, ranks = [row["response"], *responses], [1] + [2] * k
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


def slots(values, k, device, dtype=None):
    """Lists of up to k numbers → (B, k), empty slots 0."""
    return torch.tensor([[*v, *[0] * (k - len(v))] for v in values], device=device, dtype=dtype)


def scores_of(model, items, vocab, run, size=None):
    """Scores (B, K) of comparisons, each answer once through the network, and their ranks (B, K)."""
    k = max(len(tokens) for tokens, _, _ in items)
    flat = [t for tokens, _, _ in items for t in tokens]
    tokens, lengths = pad(flat, vocab.pad, run.device)
    with run.cast:
        parts = [model.score(tokens[i][:, :int(lengths[i].max())], lengths[i]) for i in torch.arange(len(flat)).split(size or len(flat))]
    scores = torch.zeros(len(items), k, device=run.device)
    ranks = slots([r for _, r, _ in items], k, run.device)
    return scores.masked_scatter(ranks > 0, torch.cat(parts).float()), ranks


@torch.no_grad()
def evaluate(model, items, vocab, run):
    """→ (accuracy, pairs, accuracy of the gold score as the ceiling or None, half-width of the 95 % interval over prompts, mean loss).

    The ceiling is over the items that carry gold scores."""
    model.eval()
    right, counts, losses, ceiling, known = [], [], [], 0.0, 0
    for start in range(0, len(items), 64):
        part = items[start:start + 64]
        scores, ranks = scores_of(model, part, vocab, run)
        losses.append(ranking_loss(scores, ranks).item() * len(part))
        for i in range(len(part)):
            a, n = accuracy(scores[i:i + 1], ranks[i:i + 1])
            right.append(a * n)
            counts.append(n)
            if part[i][2]:
                ceiling += accuracy(slots([part[i][2]], ranks.size(1), run.device, torch.float), ranks[i:i + 1])[0] * n
                known += n
    total, right, counts = sum(counts), torch.tensor(right), torch.tensor(counts)
    mean = right.sum() / total
    ci = 1.96 * ((right - mean * counts) ** 2).sum().sqrt() / total      # a prompt's pairs are not independent: cluster by prompt
    return mean.item(), total, (ceiling / known if known else None), ci.item(), sum(losses) / len(items)


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


def main():
    config = parse(Config, __doc__, SMOKE)
    if not 2 <= config.answers <= 9:
        raise UserError(f"--answers={config.answers}: a ranking needs 2 to 9 answers")
    run = Run("reward", config, parents=["sft"], name=config.name)
    if run.finished():
        return
    vocab, judge = run.vocab, load_judge(run.folder)
    file = os.path.join(run.folder, "comparisons.jsonl")
    sources = config.sources
    if sources == "auto":
        sources = "judge" if judge else "demonstrations+file" if os.path.exists(file) else "demonstrations"
    if bad := set(sources.split("+")) - {"judge", "demonstrations", "file"}:
        raise UserError(f"--sources={sources}: {', '.join(bad)} is not one of judge, demonstrations, file")
    fold = which_half(config.fold, judge)
    if {"judge", "demonstrations"} <= set(sources.split("+")):
        raise UserError(f"--sources={sources}: answers are ranked either by the judge or against demonstrations, not both")
    if "judge" in sources and not judge:
        raise UserError(f"--sources={sources}: {run.folder} has no judge.py; use file or demonstrations")
    torch.manual_seed(config.seed)
    model = ScalarGPT.from_gpt(model_from(run.parents["sft"])).to(run.device)
    block = model.config.block_size
    rows = [] if sources == "file" else sampled_comparisons(run, config, judge, sources)
    rows += read_jsonl(file, ["prompt", "responses|chosen"]) if "file" in sources else []
    train, dropped = encode_comparisons([r for r in rows if r.get("split") != "heldout"], vocab, block, fold)
    heldout, _ = encode_comparisons([r for r in rows if r.get("split") == "heldout"], vocab, block)
    if not train:
        raise UserError(f"no prompt has two answers of different rank ({dropped}); more prompts or other sources are needed")
    print(f"{len(train):,} prompts with {dropped.pop('pairs'):,} pairs; dropped: " + ", ".join(f"{n:,} {what}" for what, n in dropped.items()))

    per_epoch = -(-len(train) // config.batch)
    steps = per_epoch * config.epochs
    run.compiled(model)
    optimizer = adamw(model, config.lr, config.weight_decay)
    start, lengths = run.resume(model=model, optimizer=optimizer), [max(map(len, tokens)) for tokens, *_ in train]
    progress = bar(steps, start, config.name)
    for step in progress:
        epoch, i = divmod(step, per_epoch)
        if i == 0 or step == start:
            batches = epoch_batches(lengths, config.batch, generator(config.seed, "epoch", epoch))
        items = [train[j] for j in shard(batches[i])]
        pairs = all_reduce(torch.tensor(sum(a < b for _, r, _ in items for a in r for b in r), device=run.device))
        loss, right = torch.zeros(2, device=run.device)
        model.train()
        for part in [items[j:j + (config.micro or config.batch)] for j in range(0, len(items), config.micro or config.batch)]:
            scores, ranks = scores_of(model, part, vocab, run)
            share = better_pairs(ranks).sum() / pairs       # of the batch's pairs: the loss is their mean, however they are split
            part_loss = ranking_loss(scores, ranks) * share
            part_loss.backward()
            loss, right = loss + part_loss.detach(), right + share * accuracy(scores.detach(), ranks)[0]
        loss, right = all_reduce(loss), all_reduce(right).item()
        if step == 0 and abs(loss.item() - math.log(2)) > 1e-6:
            raise UserError(f"the first ranking loss is {loss.item():.7f}, not ln 2 = {math.log(2):.7f}: the head does not start at zero")
        lr = config.lr * cosine(step, steps, config.warmup)
        norm = update(model, optimizer, lr)
        metrics = {"loss": loss.item(), "accuracy": right, "lr": lr, "grad_norm": norm}
        if heldout and (step + 1) % max(1, steps // 4) == 0:
            metrics["eval/accuracy"], _, _, _, metrics["eval/loss"] = evaluate(model, heldout, vocab, run)
        run.log(step, metrics)
        progress.set_postfix_str(f"loss {loss.item():.3f} accuracy {right:.2f}", refresh=False)
        run.checkpoint(step + 1, model=model, optimizer=optimizer)

    # demonstrations score 0 on average; mean and spread of sampled answers are for PPO's rule on a missing EOS
    model.eval()
    demonstrations = read_jsonl(os.path.join(run.folder, "demonstrations.jsonl"), ["prompt", "response"], "train")[:1024]
    encoded = [t for r in demonstrations if len(t := vocab.prompt(r["prompt"]) + vocab.response(r["response"])) <= block]
    with torch.no_grad():
        def mean_std(sequences):
            scores, _ = scores_of(model, [([t], [1], None) for t in sequences], vocab, run, 128)
            return scores.mean().item(), scores.std().item()
        model.shift += mean_std(encoded)[0]
        mean, std = mean_std([t for tokens, *_ in train[:1024] for t in tokens[:1]])
    results = {"score_mean": mean, "score_std": std, "pairs": sum(a < b for _, r, _ in train for a in r for b in r)}
    if heldout:
        results["accuracy"], n, ceiling, ci, _ = evaluate(model, heldout, vocab, run)
        print(f"held-out accuracy {results['accuracy']:.1%} ± {ci:.1%} on {n:,} pairs")
        results["accuracy_ci"] = ci
        if ceiling:
            results["ceiling"] = ceiling
            results["agreement"] = agreement(judge, [r for r in rows if r.get("split") == "heldout" and "gold" in r], config.seed)
            print(f"the truth itself would reach {ceiling:.1%}: labelers are noisy, two of them agree on {results['agreement']:.1%} of pairs")
    print(f"sampled answers score {mean:.2f} ± {std:.2f}, demonstrations 0 on average")
    print("\nsamples: answers of the SFT model, best score first")
    for row in [r for r in rows if r.get("split") == "heldout"][:4]:
        responses, _ = read_ranking(row)
        with torch.no_grad():
            scores, _ = scores_of(model, [([vocab.prompt(row["prompt"]) + vocab.response(r) for r in responses], [1] * len(responses), None)], vocab, run)
        print(f"  {row['prompt'] if isinstance(row['prompt'], str) else row['prompt'][-1]['content']}")
        for score, response in sorted(zip(scores[0].tolist(), responses), reverse=True):
            print(f"    {score:6.2f}  {response}")
    run.finish(model, results)


if __name__ == "__main__":
    entry(main)
