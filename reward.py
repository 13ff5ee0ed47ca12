"""
Stage 2: the reward model. Ranked answers in, a network that gives an answer one number out.

    python reward.py                       # samples answers from sft.pt, has them ranked, trains
    python reward.py --sources=file        # trains on the folder's comparisons.jsonl alone
    python reward.py --answers=9 --epochs=2
    python reward.py --round=2             # adds comparisons of PPO's answers: reward-2.pt
    python reward.py --fold=2              # of the other half of the comparisons: reward-eval.pt

comparisons.py samples K answers. All their pairs are one element of a batch, each answer goes
through the network once (Ouyang et al. 2022, 3.5), and so does their prompt, once for all of them.
Eq. 1 weighs a pair by 1 / C(K, 2), here by 1.
"""
import plumbing.cpu     # first: settings that only work before torch is loaded
import math
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from common import adamw, cosine, epoch_batches, generator, micro_batches, pad, to_float32, update
from comparisons import gather_comparisons
from data import UserError, load_judge, read_jsonl
from data.comparisons import (encode_comparisons, labeler_agreement, share_of_pairs,
                              which_half)
from model import ScalarGPT
from plumbing.command_line import Common, entry, flag, parse
from plumbing.device import to_device
from plumbing.processes import all_reduce
from plumbing.run import open_run, progress_bar
from plumbing.stages import in_round, policy_before, rounds_before
from sampling import to_additive


@dataclass
class Config(Common):
    prompts: int = flag(0, "training prompts to sample answers for; 0: 12,000, in a further round "
                           "4,000", "[0, inf)")
    heldout: int = flag(900, "held-out prompts, to measure accuracy on", "[0, inf)")
    answers: int = flag(4, "K, answers per prompt; the paper has 4 to 9", "[2, 9]")
    others: int = flag(0, "of the K answers, real ones to other prompts, where demonstrations are "
                          "compared: they teach what fits a prompt", "[0, 8]")
    sources: str = flag("auto", "of comparisons: judge, demonstrations, file, or some joined by +")
    fold: str = flag("auto", "half of the comparisons to train on: 1, 2 or all; auto: all with a "
                             "judge, else 1")
    round: int = flag(1, "from 2 on: adds comparisons of the round before's policy", "[1, inf)")
    epochs: int = flag(1, "over the comparisons; more overfit, the paper says", "[1, inf)")
    batch: int = flag(16, "prompts per step, with all their pairs", "[1, inf)")
    micro_batch_size: int = flag(0, "prompts in a forward pass; 0: the batch", "[0, inf)")
    lr: float = flag(6e-4, "peak learning rate: cosine to a tenth", "(0, inf)")
    weight_decay: float = flag(0.1, "on matrices", "[0, inf)")
    warmup: int = flag(10, "steps", "[0, inf)")


SMOKE = {"prompts": 64, "heldout": 32, "answers": 4}


def ranking_loss(scores, ranks):
    """Mean of −log σ(r_better − r_worse) over all pairs of the batch (eq. 1), in nats.

    scores (B, K), ranks (B, K): 1 is best. Equal ranks are ties and make no pair. Rank 0 is an
    empty slot, whose score is ignored even if it is NaN. Without a pair the loss is 0, and
    backward() works. Eq. 1 is a mean over each prompt's pairs; this weighs a prompt by its pairs.
    """
    better = better_pairs(ranks)
    scores = torch.where(ranks > 0, to_float32(scores), 0.0)
    margin = scores[:, :, None] - scores[:, None, :]        # (B, K, K): row's score − column's
    losses = torch.where(better, F.softplus(-margin), 0.0)  # softplus(−m) = −log σ(m)
    return losses.sum() / better.sum().clamp(min=1)


def better_pairs(ranks):
    """ranks (B, K) → (B, K, K) bool: the row's answer was ranked above the column's."""
    return (ranks[:, :, None] > 0) & (ranks[:, :, None] < ranks[:, None, :])


def ordered_right(scores, ranks):
    """Pairs that the scores order as the ranks do, equal scores half → (right, all), both (B,)."""
    better = better_pairs(ranks)
    margin = scores[:, :, None] - scores[:, None, :]
    right = torch.where(better, (margin > 0).float() + 0.5 * (margin == 0), 0.0)
    return right.sum((1, 2)), better.sum((1, 2))


def count_pairs(items):
    """Pairs of answers with different ranks. items: [(token lists, ranks, gold scores or None)]."""
    return sum(a < b for _, ranks, _ in items for a in ranks for b in ranks)


def pad_numbers(rows):
    """Lists of up to K numbers → (B, K), empty slots 0."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def score_sequences(model, sequences, vocab):
    """Token lists → scores (n,)."""
    tokens, lengths = pad(sequences, vocab.pad, model.device, multiple=1)
    return model.score(tokens, lengths)


def in_one_row(answers):
    """Prompt and answer, K times (token lists) → one row: the prompt, then the answers alone.

    → lists of tokens, their positions, whose they are (0: the prompt's), is it an answer's last.
    """
    n = len(os.path.commonprefix([a[:-1] for a in answers]))
    rows = list(answers[0][:n]), list(range(n)), [0] * n, [False] * n
    for k, a in enumerate(answers, 1):
        rest = len(a) - n
        parts = a[n:], range(n, len(a)), [k] * rest, [False] * (rest - 1) + [True]
        for row, part in zip(rows, parts):
            row.extend(part)
    return rows


def scores_of(model, items, vocab):
    """Scores (B, K) of comparisons, and ranks (B, K). An answer sees its prompt and itself."""
    columns = zip(*(in_one_row(answers) for answers, _, _ in items))
    tokens, positions, owner, last = (pad(rows, filler, model.device, multiple=1)[0]
                                      for rows, filler in zip(columns, (vocab.pad, 0, -1, 0)))
    seen = (owner[:, None] == 0) | (owner[:, None] == owner[:, :, None])        # (B, T, T)
    attn_mask = to_additive(seen.tril()[:, None], model.compute_dtype)
    found = model(tokens, last == 1, positions, attn_mask)[last == 1]
    ranks = to_device(pad_numbers([ranks for _, ranks, _ in items]), model.device)
    scores = torch.zeros(ranks.shape, device=model.device)
    return scores.masked_scatter(ranks > 0, found), ranks       # row by row into the real slots


def reward_backward(model, items, vocab, micro_batch_size):
    """Add the gradient of ranking_loss on a batch of comparisons → (loss, accuracy)."""
    loss = torch.zeros((), device=model.device)
    n_right = torch.zeros((), device=model.device)
    n_pairs = count_pairs(items)
    for micro in micro_batches(items, micro_batch_size):
        scores, ranks = scores_of(model, micro, vocab)
        micro_loss = ranking_loss(scores, ranks) * (count_pairs(micro) / n_pairs)
        micro_loss.backward()
        loss += micro_loss.detach()
        n_right += ordered_right(scores.detach(), ranks)[0].sum()
    return all_reduce(loss).item(), all_reduce(n_right).item() / n_pairs


@torch.no_grad()
def heldout_accuracy(model, items, vocab):
    """Accuracy, its 95 % interval, pairs and loss on held-out comparisons, as a dictionary.

    A prompt's pairs hang together, so the interval is over prompts. ceiling is the accuracy of the
    gold score itself, on the items that have one; None without.
    """
    model.eval()
    right, pairs, loss, gold_right, gold_pairs = [], [], 0.0, 0, 0
    for start in range(0, len(items), 64):
        part = items[start:start + 64]
        scores, ranks = (x.cpu() for x in scores_of(model, part, vocab))
        loss += ranking_loss(scores, ranks).item() * count_pairs(part) / count_pairs(items)
        n_right, n_pairs = ordered_right(scores, ranks)
        right += n_right.tolist()
        pairs += n_pairs.tolist()
        if known := [(ranks, gold) for _, ranks, gold in part if gold]:
            known_ranks, golds = (pad_numbers(rows) for rows in zip(*known))
            n_right, n_pairs = ordered_right(golds, known_ranks)
            gold_right += n_right.sum().item()
            gold_pairs += n_pairs.sum().item()
    accuracy, ci = share_of_pairs(right, pairs)
    return {"accuracy": accuracy, "accuracy_ci": ci, "loss": loss, "pairs": sum(pairs),
            "ceiling": gold_right / gold_pairs if gold_pairs else None}


@torch.no_grad()
def shift_scores(model, demonstrations, answers, vocab):
    """Shift the scores so that demonstrations have 0 on average, as the paper does.

    Both are token lists. → mean and standard deviation (0 of one answer) of the answers' scores,
    for PPO's rule on a missing EOS.
    """
    def scores(sequences):
        parts = [sequences[i:i + 128] for i in range(0, len(sequences), 128)]
        return torch.cat([score_sequences(model, part, vocab) for part in parts])
    model.shift += scores(demonstrations).mean().item()
    found = scores(answers)
    return found.mean().item(), found.std(correction=min(1, len(found) - 1)).item()


def check_config(config):
    if config.others >= config.answers:
        raise UserError(f"--others={config.others}: of --answers={config.answers} one is the "
                        f"demonstration, so 0 to {config.answers - 1} can be others")
    if config.fold == "2" and config.round > 1:
        raise UserError("--fold=2 makes the reward model that evaluates: leave out --round")


def main():
    config = parse(Config, __doc__, SMOKE)
    check_config(config)
    config.prompts = config.prompts or (12000 if config.round == 1 else 4000)
    stage = "reward-eval" if config.fold == "2" else in_round("reward", config.round)
    run = open_run(stage, config, ["sft", *rounds_before(config.round)])
    if run.finished():
        return
    vocab, judge = run.vocab, load_judge(run.folder)
    model = ScalarGPT.from_gpt(run.load_model("sft"))
    block = model.config.block_size
    fold = which_half(config.fold, judge)
    rounds = gather_comparisons(run, judge)
    heldout_rows = [row for rows in rounds for row in rows if row.get("split") == "heldout"]
    heldout, _ = encode_comparisons(heldout_rows, vocab, block)
    train, dropped = encode_comparisons([row for rows in rounds for row in rows
                                         if row.get("split") != "heldout"], vocab, block, fold)
    if not train:
        raise UserError(f"no prompt has two answers of different rank ({dropped}); more prompts or "
                        f"other sources are needed"
                        + ", or both halves of them: --fold=all" * bool(fold))
    print(f"{len(train):,} prompts with {count_pairs(train):,} pairs; dropped: "
          + ", ".join(f"{n:,} {what}" for what, n in dropped.items()))

    batches_per_epoch = math.ceil(len(train) / config.batch)
    steps = batches_per_epoch * config.epochs
    run.compile(model)
    optimizer = adamw(model, config.lr, config.weight_decay)
    first = run.resume(model=model, optimizer=optimizer)
    lengths = [len(in_one_row(answers)[0]) for answers, _, _ in train]
    progress = progress_bar(steps, first, stage)
    for step in progress:
        epoch, i = divmod(step, batches_per_epoch)
        if i == 0 or step == first:
            batches = epoch_batches(lengths, config.batch, generator(config.seed, "epoch", epoch))
        model.train()
        batch = [train[j] for j in batches[i]]
        loss, accuracy = reward_backward(model, batch, vocab, config.micro_batch_size)
        if step == 0 and abs(loss - math.log(2)) > 1e-6:
            raise UserError(f"the first ranking loss is {loss:.7f}, not ln 2 = {math.log(2):.7f}: "
                            f"the head does not start at zero")
        lr = config.lr * cosine(step, steps, config.warmup)
        norm = update(model, optimizer, lr)

        metrics = {"loss": loss, "accuracy": accuracy, "lr": lr, "grad_norm": norm}
        if heldout and (step + 1) % max(1, steps // 4) == 0:
            found = heldout_accuracy(model, heldout, vocab)
            metrics |= {"eval/accuracy": found["accuracy"], "eval/loss": found["loss"]}
        run.log(step, metrics)
        progress.set_postfix_str(f"loss {loss:.3f} accuracy {accuracy:.2f}", refresh=False)
        run.checkpoint(step + 1, model=model, optimizer=optimizer)

    rows = read_jsonl(os.path.join(run.folder, "demonstrations.jsonl"), ["prompt", "response"],
                      "train")[:1024]
    demonstrations = [vocab.prompt(r["prompt"]) + vocab.response(r["response"]) for r in rows]
    mean, std = shift_scores(model.eval(), [d for d in demonstrations if len(d) <= block],
                             [answers[0 if judge else n % len(answers)]
                              for n, (answers, _, _) in enumerate(train[:1024])], vocab)
    print(f"ranked answers score {mean:.2f} ± {std:.2f}, demonstrations 0 on average")
    results = {"score_mean": mean, "score_std": std, "pairs": count_pairs(train)}
    if heldout:
        results |= show_accuracy(model, heldout, heldout_rows, rounds[-1], judge, run)
    run.finish(model, results)
    show_samples(model, [row for row in rounds[-1] if row.get("split") == "heldout"], vocab)


def show_accuracy(model, heldout, rows, newest, judge, run):
    """Print and return the held-out accuracy; in a further round also on the newest answers."""
    found = heldout_accuracy(model, heldout, run.vocab)
    print(f"held-out accuracy {found['accuracy']:.1%} ± {found['accuracy_ci']:.1%} on "
          f"{found['pairs']:,} pairs")
    results = {"accuracy": found["accuracy"], "accuracy_ci": found["accuracy_ci"]}
    if found["ceiling"]:
        agree = labeler_agreement(judge, [row for row in rows if "gold" in row], run.config.seed)
        results |= {"ceiling": found["ceiling"], "agreement": agree}
        print(f"the truth itself would reach {found['ceiling']:.1%}: labelers are noisy, two of "
              f"them agree on {agree:.1%} of pairs")
    items, _ = encode_comparisons([row for row in newest if row.get("split") == "heldout"],
                                  run.vocab, model.config.block_size)
    if run.config.round > 1 and run.config.sources != "file" and items:
        found = heldout_accuracy(model, items, run.vocab)
        print(f"  on {policy_before(run.config.round)}'s answers alone {found['accuracy']:.1%} ± "
              f"{found['accuracy_ci']:.1%} of {found['pairs']:,} pairs")
        results |= {"accuracy_newest": found["accuracy"],
                    "accuracy_newest_ci": found["accuracy_ci"]}
    return results


@torch.no_grad()
def show_samples(model, rows, vocab):
    """Print the answers to four prompts, best score first."""
    print("\nsamples: answers, best score first")
    items, _ = encode_comparisons(rows, vocab, model.config.block_size)
    for answers, _, _ in items[:4]:
        first = answers[0]      # all begin with the same prompt
        asked, answered = after_last(first, vocab.user), after_last(first, vocab.assistant)
        print(f"  {vocab.decode(first[asked:answered])}")
        scores = score_sequences(model, answers, vocab).tolist()
        for score, tokens in sorted(zip(scores, answers), reverse=True):
            cut_off = "" if tokens[-1] == vocab.eos else " …"
            print(f"    {score:6.2f}  {vocab.decode(tokens[answered:])}{cut_off}")


def after_last(tokens, token):
    """The position after the last `token`."""
    return len(tokens) - tokens[::-1].index(token)


if __name__ == "__main__":
    entry(main)
