"""
What a run ends with: the table of all stages, answers side by side, and the curves.

    python evaluate.py                       # of out/village: prints, and writes summary.json and curves.png
    python evaluate.py --stages=sft,ppo --prompts=300
    python evaluate.py --best_of=16          # and what the reward model picks of 16 of SFT's answers
    python evaluate.py --stages=pretrain,sft,ppo,ppo-2      # two rounds: writes summary-2.json and curves-2.png

One answer is sampled for each held-out prompt from each stage, with the same noise. Where the data folder has a
judge.py, its gold score is shown; elsewhere a second reward model, trained on the half of the comparisons that PPO
never saw, says who wins. Intervals are 95 %, by the normal approximation over prompts.
"""
import json
import math
import os
from collections import defaultdict
from dataclasses import dataclass

from common import (POLICY, Common, Run, at_once, document_starts, entry, generator, in_round, model_from, pad, parse, read_log,
                    run_stage, text_loss, load, round_of, rounds_before)      # before torch: it says how threads wait
from comparisons import sample_answers
from data import UserError, load_judge, load_reward, read_heldout, read_jsonl, read_tokens, replacing
from model import ScalarGPT
from ppo import eos_rule, forward, forward_logprobs, in_parts, shown

import torch


@dataclass
class Config(Common):
    stages: str = "pretrain,sft,ppo"     # of OUT, to compare; sft must be among them
    prompts: int = 1000         # held-out prompts that were demonstrated in kind; those of unseen kinds come on top
    temperature: float = 1.0    # of the answers
    samples: int = 8            # prompts to print with all answers
    best_of: int = 0            # add a column: the best of so many of SFT's answers by the reward model
    reward: str = ""            # the function that PPO was trained with, if it was: its value is shown, and picks the best of n


NAMES = {"pretrain": "base"}
PARTS = ["gold", "helpful", "honest", "harmless"]


def mean_ci(values):
    """Mean and half-width of its 95 % interval; None for no values."""
    if not values:
        return None, None
    x = torch.tensor(values, dtype=torch.float64)
    return x.mean().item(), (1.96 * x.std(correction=0) / len(x) ** 0.5).item()


def answers_of(model, prompts, run, temperature):
    """Sampled answers (token lists), the same noise for every model."""
    with run.cast:
        return [new for i in range(0, len(prompts), 500) for new in model.generate(
            prompts[i:i + 500], run.config.max_new_tokens, temperature, eos=run.vocab.eos, generator=generator(run.config.seed, "answers", i))]


def kl_per_answer(model, reference, prompts, answers, run):
    """Σ log π − log π_ref over each sampled answer, in nats: k1."""
    tokens, lengths = pad([p + a for p, a in zip(prompts, answers)], run.vocab.pad, run.device)
    starts = torch.tensor([len(p) for p in prompts], device=run.device)
    columns = torch.arange(tokens.size(1), device=run.device)
    mask = (columns >= starts[:, None]) & (columns < lengths[:, None])
    size = at_once(128, max(map(len, answers)), model.config)
    a, b = (in_parts(lambda x, asked: forward_logprobs(m, x, run.config.temperature or 1.0, run.cast, asked), lengths, size, tokens, mask) for m in (model, reference))
    return shown(a - b, mask).sum(1).tolist()


def scores_of(scorer, rows, prompts, answers, run):
    """What a reward model, or a function of (prompt, response), gives to each answer (token lists) → (B,)."""
    if not isinstance(scorer, ScalarGPT):
        return torch.tensor([scorer(r["prompt"], run.vocab.decode(a)) for r, a in zip(rows, answers)])
    tokens, lengths = pad([p + a for p, a in zip(prompts, answers)], run.vocab.pad, run.device)
    return in_parts(lambda x: forward(scorer, x, run.cast), lengths, 128, tokens).gather(1, lengths[:, None] - 1).squeeze(1).cpu()


def best_of(n, model, scorer, rm, rows, prompts, run, temperature):
    """Of n sampled answers to each prompt the one that scores highest, by PPO's rule on a missing EOS (rm: the reward model's results)."""
    answers = sample_answers(model, prompts, run, n, f"best of {n}", temperature)
    flat = [a for row in answers for a in row]
    scores = scores_of(scorer, [r for r in rows for _ in range(n)], [p for p in prompts for _ in range(n)], flat, run)
    ended = torch.tensor([a[-1] == run.vocab.eos for a in flat])
    mean, std = (rm["score_mean"], rm["score_std"]) if rm else (scores.mean(), scores.std())
    return [row[i] for row, i in zip(answers, eos_rule(scores, ended, mean, std).view(-1, n).argmax(1).tolist())]


def wins(ours, theirs):
    """1 for a win, 0.5 for a tie, 0 for a loss."""
    return [0.5 + 0.5 * (a > b) - 0.5 * (a < b) for a, b in zip(ours, theirs)]


def text_of(prompt):
    return prompt if isinstance(prompt, str) else "  ".join(f"{'' if t['role'] == 'user' else '→ '}{t['content']}" for t in prompt)


def curves(log, path, function=""):
    """What PPO's log shows, one panel an idea. function: the --reward that PPO had, whose own unit is not that of the rollouts."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    scores = [("reward-model score", [("objective/scores", "rollouts"), ("eval/score", "held-out prompts")])]
    if function:
        scores = [("score, rollouts; SFT's have mean 0, spread 1", [("objective/scores", "")]), (f"{function}, held-out prompts", [("eval/score", "")])]
    panels = [*scores, ("gold score, held-out prompts", [("eval/gold", "")]),
              ("KL to SFT, nats an answer", [("objective/kl", "k1"), ("objective/kl_k3", "k3")]), ("entropy, nats an answer", [("objective/entropy", "")]),
              ("share of ratios clipped", [("policy/clipfrac_avg", "")]), ("response length, tokens", [("response/length", "")]),
              ("loss on pretraining text, nats a token", [("loss/ptx_avg", "ptx batches"), ("eval/pretrain_loss", "held out")]),
              ("explained variance of the critic", [("val/explained_variance", "")])]
    panels = [p for p in panels if any(k in row for row in log for k, _ in p[1])]
    figure, axes = plt.subplots(2, -(-len(panels) // 2), figsize=(4 * -(-len(panels) // 2), 6.4), constrained_layout=True)
    for ax, (title, lines) in zip(axes.flat, panels):
        for key, label in lines:
            points = [(row["episode"], row[key]) for row in log if key in row]
            ax.plot(*zip(*points), label=label, marker="." if key.startswith("eval") else None)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("episodes")
        ax.grid(alpha=0.3)
        if lines[0][1]:
            ax.legend(fontsize=8)
    for ax in axes.flat[len(panels):]:
        ax.axis("off")
    with replacing(path, "wb") as f:
        figure.savefig(f, format="png", dpi=110)
    plt.close(figure)


def main():
    config = parse(Config, __doc__)
    stages = config.stages.split(",")
    if bad := [s for s in stages if not POLICY.fullmatch(s)]:
        raise UserError(f"--stages={config.stages}: {', '.join(sorted(bad))} is not one of pretrain, sft, ppo, ppo-2 and so on")
    if "sft" not in stages:
        raise UserError(f"--stages={config.stages}: sft must be among them, it is what the others are compared with")
    if config.fresh:
        raise UserError("--fresh: evaluate.py always evaluates anew; give --fresh to the stage that is to be made again")
    if config.prompts < 1:
        raise UserError(f"--prompts={config.prompts}: at least one is needed")
    if config.best_of < 0 or config.best_of == 1 or config.best_of and config.temperature == 0:
        raise UserError(f"--best_of={config.best_of}: give 2 or more, and a --temperature above 0, or there is nothing to choose from")
    function = load_reward(config.reward) if config.reward else None
    number = max(map(round_of, stages))     # of rounds
    reward = [in_round("reward", number)] if config.best_of and not function else []
    run = Run("evaluate", config, parents=[*stages, *reward])
    vocab, judge = run.vocab, load_judge(run.folder)
    models = {NAMES.get(s, s): model_from(run.parents[s]).to(run.device) for s in stages}
    path = os.path.join(run.folder, "prompts.jsonl")
    unseen = [r for r in read_jsonl(path, ["prompt"], "heldout") if r.get("unseen")]
    rows = read_heldout(path, ["prompt"], final=True)[:config.prompts] + unseen[:config.prompts // 5]
    seen = [i for i, r in enumerate(rows) if not r.get("unseen")]
    prompts = [vocab.prompt(r["prompt"]) for r in rows]
    val = read_tokens(os.path.join(run.folder, "val.bin"), vocab)
    block = models["sft"].config.block_size
    val_starts = document_starts(val, vocab.eos, block)

    other, mark = function, "reward"        # who judges where nobody knows the truth
    if not judge and not function:
        mark, path = "second_rm", os.path.join(config.out, "reward-eval.pt")
        if not os.path.exists(path):
            run_stage("reward", config, "--fold=2", "--name=reward-eval")
        other = model_from(load(path), ScalarGPT).to(run.device)

    answers, points, summary = {}, {}, {}
    sampled = {name: answers_of(model, prompts, run, config.temperature) for name, model in models.items()}
    if config.best_of:
        rm = run.parents[reward[0]] if reward else None
        sampled[f"best of {config.best_of}"] = best_of(config.best_of, models["sft"], model_from(rm).to(run.device) if rm else function,
                                                       rm and rm["results"], rows, prompts, run, config.temperature)
    for name, news in sampled.items():
        model = models.get(name, models["sft"])
        answers[name] = [vocab.decode(new) for new in news]
        marks = [judge.gold(r["prompt"], a) if judge else dict.fromkeys(PARTS) for r, a in zip(rows, answers[name])]
        if other:
            marks = [{**m, mark: s} for m, s in zip(marks, scores_of(other, rows, prompts, news, run).tolist())]
        points[name] = [m["gold" if judge else mark] for m in marks]
        columns = {part: [marks[i][part] for i in seen if marks[i][part] is not None] for part in marks[0]}
        kl = (kl_per_answer(model, models["sft"], prompts, news, run) if name in models
              else [math.log(config.best_of) - (config.best_of - 1) / config.best_of] * len(rows))      # Stiennon et al. 2020; less where answers repeat
        columns |= {"kl": kl, "length": [len(n) for n in news], "eos_fraction": [float(n[-1] == vocab.eos) for n in news]}
        columns |= {k: [columns[k][i] for i in seen] for k in ("kl", "length", "eos_fraction")}
        cells = {k: mean_ci(v) for k, v in columns.items()}
        loss, error = text_loss(model, val, val_starts, block, run.device, run.cast, rows=512)
        cells["pretrain_loss"] = (loss, 1.96 * error)
        kinds = defaultdict(list)
        for row, p in zip(rows, points[name]):
            kinds[row.get("kind", "all")].append(p)
        summary[name] = {k: v for k, (v, _) in cells.items()}
        summary[name] |= {"ci": {k: c for k, (_, c) in cells.items()}, "by_kind": {k: mean_ci(v)[0] for k, v in kinds.items()}}
    for name in sampled:
        won, ci = mean_ci([wins(points[name], points["sft"])[i] for i in seen])
        summary[name]["win_vs_sft"], summary[name]["ci"]["win_vs_sft"] = won, ci
    summary["seconds"] = {s: round(load(p)["seconds"], 1) for s in ["pretrain", "sft", *rounds_before(number + 1)] if os.path.exists(p := os.path.join(config.out, s + ".pt"))}
    summary["seed"] = config.seed

    keys = [k for k in ("gold", "helpful", "honest", "harmless", "second_rm", "reward", "win_vs_sft", "kl", "length", "eos_fraction", "pretrain_loss")
            if summary["sft"].get(k) is not None]
    print(f"\n{len(seen)} held-out prompts, one answer each at temperature {config.temperature:g}; ± is a 95 % interval\n")
    print(f"{'':15s}" + "".join(f"{name:>16s}" for name in sampled))
    for key in keys:
        print(f"{key:15s}" + "".join(f"{summary[n][key]:9.3f} ±{summary[n]['ci'][key]:5.3f}" for n in sampled))
    if judge:
        shown_how = read_jsonl(os.path.join(run.folder, "demonstrations.jsonl"), ["prompt", "response"])
        mean, ci = mean_ci([judge.gold(r["prompt"], r["response"])["gold"] for r in shown_how])
        summary["demonstrators"] = {"gold": mean, "ci": {"gold": ci}}
        print(f"\nthe demonstrators themselves: gold {mean:.3f} ± {ci:.3f}, on all {len(shown_how):,} demonstrations")
    kinds = summary["sft"]["by_kind"]
    if len(kinds) > 1:
        never = {r["kind"] for r in unseen}
        print("\ngold score by kind of instruction" + (" (* never demonstrated)" if never else ""))
        for kind in sorted(kinds, key=lambda k: (k in never, k)):
            print(f"{kind + '*' * (kind in never):15s}" + "".join(f"{summary[n]['by_kind'][kind]:9.3f}       " for n in sampled))
    print("\nheld-out prompts, answers of all stages (and their marks)")
    order = torch.randperm(len(seen), generator=generator(config.seed, "shown")).tolist()
    by_kind = {rows[seen[i]].get("kind", i): seen[i] for i in order}      # one of a kind, where there are kinds
    for i in list(by_kind.values())[:config.samples]:
        print(f"\n  {text_of(rows[i]['prompt'])}")
        for name in sampled:
            print(f"    {name:5s} {points[name][i]:5.2f}  {answers[name][i]}")

    if len(stages) < 3:
        return      # summary.json and curves.png are of a whole run
    path = os.path.join(config.out, in_round("summary", number) + ".json")
    with replacing(path) as f:
        json.dump(summary, f, indent=1)
    figure = os.path.join(config.out, in_round("curves", number) + ".png")
    curves(read_log(os.path.join(config.out, in_round("ppo", number) + ".jsonl")), figure, config.reward)
    print(f"\nwrote {path} and {figure}; {', '.join(f'{s} {t:.0f} s' for s, t in summary['seconds'].items())}, {sum(summary['seconds'].values()) / 60:.1f} minutes in all")


if __name__ == "__main__":
    entry(main)
