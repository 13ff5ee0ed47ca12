"""
Stage 2: the reward model. Ranked answers in, a network that scores an answer with one number out.

    python reward.py                       # samples answers from sft.pt, has them ranked, trains: about two minutes
    python reward.py --sources=file        # trains on the folder's comparisons.jsonl, without sampling
    python reward.py --answers=9 --epochs=2
    python reward.py --round=2             # more comparisons, on PPO's answers, and a new model of all of them: reward-2.pt

Stage 2a, comparisons.py, samples K answers to a prompt and has them ranked. Here all their K(K−1)/2 pairs form one
batch element, and each answer goes through the network once (Ouyang et al. 2022, section 3.5).
"""
import math
import os
from dataclasses import dataclass

from common import (Common, Run, adamw, all_reduce, bar, cosine, entry, epoch_batches, generator, in_round, model_from, pad, parse, policy_before,
                    rounds_before, shard, update)     # before torch: it says how threads wait
from comparisons import agreement, encode_comparisons, sampled_comparisons, which_half
from data import UserError, load_judge, read_jsonl
from model import ScalarGPT

import torch
import torch.nn.functional as F


@dataclass
class Config(Common):
    prompts: int = 0            # training prompts to sample answers for; 0: 12,000, and 4,000 in a further round
    heldout: int = 900          # held-out prompts, to measure accuracy on
    answers: int = 4            # K, answers a prompt; the paper has 4 to 9
    others: int = 0             # of the K answers, real ones to other prompts, where demonstrations are what is compared: they teach what fits a prompt
    sources: str = "auto"       # where comparisons come from: judge, demonstrations, file, or several joined by +
    fold: str = "auto"          # the half of the comparisons to train on, 1 or 2, or all; auto: all where a judge evaluates, else 1
    name: str = "reward"        # of the checkpoint in OUT
    round: int = 1              # from 2 on: comparisons of the policy of the round before are added to the old ones
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


def main():
    config = parse(Config, __doc__, SMOKE)
    if not 2 <= config.answers <= 9:
        raise UserError(f"--answers={config.answers}: a ranking needs 2 to 9 answers")
    if not 0 <= config.others < config.answers:
        raise UserError(f"--others={config.others}: of --answers={config.answers} one is the demonstration, so 0 to {config.answers - 1} can be others")
    config.prompts = config.prompts or (12000 if config.round == 1 else 4000)
    run = Run("reward", config, parents=["sft", *rounds_before(config.round)], name=in_round(config.name, config.round))
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
    rounds = [sampled_comparisons(run, config, judge, sources, n) for n in range(1, config.round + 1)] if sources != "file" else [[]]
    rows = sum(rounds, [])
    rows += read_jsonl(file, ["prompt", "responses|chosen"]) if "file" in sources else []
    train, dropped = encode_comparisons([r for r in rows if r.get("split") != "heldout"], vocab, block, fold)
    heldout, _ = encode_comparisons([r for r in rows if r.get("split") == "heldout"], vocab, block)
    if not train:
        raise UserError(f"no prompt has two answers of different rank ({dropped}); more prompts or other sources are needed")
    print(f"{len(train):,} prompts with {dropped.pop('pairs'):,} pairs; dropped: " + ", ".join(f"{n:,} {what}" for what, n in dropped.items()))

    per_epoch = -(-len(train) // config.batch)
    steps, micro = per_epoch * config.epochs, config.micro or config.batch
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
        for part in (items[j:j + micro] for j in range(0, len(items), micro)):
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

    # demonstrations score 0 on average; PPO's rule on a missing EOS goes by mean and spread of the first answer to each
    # prompt: a sampled one where answers were ranked, a person's where demonstrations are what is compared
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
    if config.round > 1 and (newest := encode_comparisons([r for r in rounds[-1] if r["split"] == "heldout"], vocab, block)[0]):
        results["accuracy_newest"], n, ceiling, results["accuracy_newest_ci"], _ = evaluate(model, newest, vocab, run)
        print(f"  on {policy_before(config.round)}'s answers alone {results['accuracy_newest']:.1%} ± {results['accuracy_newest_ci']:.1%} of {n:,} pairs"
              + (f", of {ceiling:.1%} possible" if ceiling else ""))
    print(f"sampled answers score {mean:.2f} ± {std:.2f}, demonstrations 0 on average")
    print("\nsamples: answers, best score first")
    shown, _ = encode_comparisons([r for r in rounds[-1] or rows if r.get("split") == "heldout"], vocab, block)
    for item in shown[:4]:
        with torch.no_grad():
            scores, _ = scores_of(model, [item], vocab, run)
        tokens = item[0][0]
        asked, answer = (len(tokens) - tokens[::-1].index(turn) for turn in (vocab.user, vocab.assistant))      # where the last turns begin
        print(f"  {vocab.decode(tokens[asked:answer])}")
        for score, tokens in sorted(zip(scores[0].tolist(), item[0]), reverse=True):
            print(f"    {score:6.2f}  {vocab.decode(tokens[answer:])}" + " …" * (tokens[-1] != vocab.eos))
    run.finish(model, results)


if __name__ == "__main__":
    entry(main)
