"""
What a run ends with: the table of all stages, answers side by side, and the curves.

    python evaluate.py           # of out/village; writes summary.json, curves.png and report.html
    python evaluate.py --stages=sft,ppo --prompts=300
    python evaluate.py --best_of=16      # and what the reward model picks of 16 SFT answers
    python evaluate.py --stages=pretrain,sft,ppo,ppo-2   # two rounds: summary-2.json, …

One answer is sampled for each held-out prompt from each stage, with the same noise. Where the data
folder has a judge.py, its gold score is shown. Elsewhere a second reward model judges, trained on
the half of the comparisons that PPO never saw. Intervals are 95 %, by the normal approximation over
prompts.
"""
import plumbing.cpu     # first: settings that only work before torch is loaded
import json
import math
import os
from collections import defaultdict
from dataclasses import dataclass

import torch

import sampling
from common import generator, masked
from comparisons import sample_answers
from data import (UserError, load_judge, load_reward, meaning_of, read_heldout, read_jsonl,
                  replacing, turns_of)
from data.text import read_texts, rows_that_fit
from plumbing.checkpoint import load, model_from
from plumbing.command_line import Common, entry, flag, parse
from plumbing.run import open_run, read_log, run_stage
from plumbing.stages import POLICY, in_round, round_of, rounds_before
from ppo import penalize_missing_eos, rollout_logprobs
from report import panels, save_report
from rollout import Rollout, scorer


@dataclass
class Config(Common):
    stages: str = flag("pretrain,sft,ppo", "of OUT, to compare; sft must be among them")
    prompts: int = flag(1000, "held-out prompts of kinds that were demonstrated; those of other "
                              "kinds come on top", "[1, inf)")
    temperature: float = flag(1.0, "of the answers", "0 or [0.001, inf)")
    samples: int = flag(8, "prompts to print with all answers", "[0, inf)")
    best_of: int = flag(0, "add a column: the best of so many SFT answers by the reward model",
                       "0 or [2, inf)")
    reward: str = flag("", "the function that PPO was trained with, if it was: its value is shown, "
                           "and picks the best of n")


SMOKE = {"prompts": 60}
PARTS = ["gold", "helpful", "honest", "harmless"]       # what a judge says
# the rows of the table, where there is a value
ROWS = [*PARTS, "second_rm", "reward", "win_vs_sft", "kl", "length", "eos_fraction",
        "pretrain_loss"]


def mean_ci(values):
    """Mean and half-width of its 95 % interval; None for no values."""
    if not values:
        return None, None
    x = torch.tensor(values, dtype=torch.float64)
    return x.mean().item(), (1.96 * x.std(correction=0) / len(x) ** 0.5).item()


def wins(ours, theirs):
    """1 for a win, 0.5 for a tie, 0 for a loss."""
    return [0.5 + 0.5 * (a > b) - 0.5 * (a < b) for a, b in zip(ours, theirs)]


def sample_responses(model, prompts, run):
    """An answer (token list) to each prompt, with the same noise for every model."""
    config, responses = run.config, []
    for start in range(0, len(prompts), 500):
        responses += sampling.generate(
            model, prompts[start:start + 500], config.max_new_tokens, config.temperature,
            eos=run.vocab.eos, generator=generator(config.seed, "answers", start))
    return responses


def kl_per_answer(model, reference, rollout, temperature=1.0):
    """Σ log π − log π_ref over each answer, in nats: k1."""
    size = rows_that_fit(128, int(rollout.mask.sum(1).max()), model.config)
    logprobs, ref_logprobs = (rollout_logprobs(m, rollout, size, temperature or 1.0)
                              for m in (model, reference))
    return masked(logprobs - ref_logprobs, rollout.mask).sum(1).tolist()


def best_of_n(n, model, raw_scores, results, rows, prompts, run):
    """Of n answers to each prompt the one with the highest score → token lists.

    results: the reward model's, for PPO's rule on a missing EOS; None for a function.
    """
    answers = sample_answers(model, prompts, run, n, f"best of {n}", run.config.temperature)
    flat = [response for k_answers in answers for response in k_answers]
    rollout = Rollout.of([p for p in prompts for _ in range(n)], flat, run.vocab, model)
    scores = raw_scores(rollout, [row for row in rows for _ in range(n)])
    mean, std = scores.mean(), scores.std()
    if results:
        mean, std = results["score_mean"], results["score_std"]
    best = penalize_missing_eos(scores, rollout.has_eos, mean, std).view(-1, n).argmax(1)
    return [k_answers[i] for k_answers, i in zip(answers, best.tolist())]


def mark_answers(rollout, rows, judge, raw_scores, score_name, vocab):
    """What judge, reward model or function say of each answer; "points" decides who wins."""
    marks = [judge.gold(meaning_of(row), text) if judge else dict.fromkeys(PARTS)
             for row, text in zip(rows, rollout.texts(vocab))]
    if raw_scores:
        scores = raw_scores(rollout, rows).tolist()
        marks = [{**mark, score_name: score} for mark, score in zip(marks, scores)]
    lengths, ended = rollout.mask.sum(1).tolist(), rollout.has_eos.tolist()
    return [{**mark, "points": mark["gold" if judge else score_name], "length": length,
             "eos_fraction": float(end)} for mark, length, end in zip(marks, lengths, ended)]


def summarize(marks, rows, n, text_loss):
    """One column of the table → {row: mean, …, "ci": {row: half-width}, "by_kind": …, "by_tag": …}.

    The first n rows count. The others, of kinds that were never demonstrated, count in by_kind.
    """
    columns = {key: [m[key] for m in marks[:n] if m[key] is not None] for key in marks[0]}
    cells = {key: mean_ci(values) for key, values in columns.items() if key != "points"}
    cells["pretrain_loss"] = text_loss[0], 1.96 * text_loss[1]
    kinds, tags = defaultdict(list), defaultdict(list)
    for i, (row, mark) in enumerate(zip(rows, marks)):
        kinds[row.get("kind", "all")].append(mark["points"])
        for tag in row.get("tags", []) if i < n else []:
            tags[tag].append(mark["points"])
    return {key: mean for key, (mean, _) in cells.items()} | {
        "ci": {key: ci for key, (_, ci) in cells.items()},
        "by_kind": {kind: mean_ci(points) for kind, points in kinds.items()},
        "by_tag": {tag: mean_ci(points) for tag, points in tags.items()}}


def mark_demonstrators(run, judge):
    """Print the demonstrators' own gold score; returns it with its interval."""
    rows = read_jsonl(os.path.join(run.folder, "demonstrations.jsonl"), ["prompt", "response"])
    mean, ci = mean_ci([judge.gold(meaning_of(row), row["response"])["gold"] for row in rows])
    print(f"\nthe demonstrators themselves: gold {mean:.3f} ± {ci:.3f}, on all {len(rows):,} "
          f"demonstrations")
    return {"gold": mean, "ci": {"gold": ci}}


def print_rows(rows):
    """A line for each row of a table. rows: {name: [(mean, half-width of its interval), …]}"""
    for name, cells in rows.items():
        print(f"{name:20s}" + "".join(f"{mean:9.3f} ±{ci:5.3f}" for mean, ci in cells))


def print_table(summary, names, config, n):
    print(f"\n{n} held-out prompts, one answer each at temperature {config.temperature:g}; "
          f"± is a 95 % interval\n")
    print(f"{'':20s}" + "".join(f"{name:>16s}" for name in names))
    print_rows({key: [(summary[name][key], summary[name]["ci"][key]) for name in names]
                for key in ROWS if summary["sft"].get(key) is not None})


def print_groups(summary, names, group, title, unseen=()):
    """A line for each kind, or tag, of prompts. * marks what is in `unseen`."""
    keys = sorted(summary["sft"][group], key=lambda key: (key in unseen, key))
    if len(keys) > 1:
        print(f"\n{title}")
        print_rows({key + "*" * (key in unseen): [summary[name][group][key] for name in names]
                    for key in keys})


def print_samples(sampled, marks, rows, n, run):
    """Prompts with the answers of all stages: one of each kind, where there are kinds."""
    print("\nheld-out prompts, answers of all stages (and their marks)")
    order = torch.randperm(n, generator=generator(run.config.seed, "shown")).tolist()
    by_kind = {rows[i].get("kind", i): i for i in order}
    for i in list(by_kind.values())[:run.config.samples]:
        turns = turns_of(rows[i]["prompt"])
        print("\n  " + "  ".join("→ " * (t["role"] != "user") + t["content"] for t in turns))
        for name, responses in sampled.items():
            points, answer = marks[name][i]["points"], run.vocab.decode(responses[i])
            print(f"    {name:5s} {points:5.2f}  {answer}")


def draw_curves(log, path, reward=""):
    """PPO's log as a figure, one panel an idea. reward: the function it had, with its own unit."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    shown = panels(log, reward)
    columns = -(-len(shown) // 2)
    figure, axes = plt.subplots(2, columns, figsize=(4 * columns, 6.4), constrained_layout=True)
    for ax, (title, lines) in zip(axes.flat, shown.items()):
        for key, label in lines.items():
            points = [(row["episode"], row[key]) for row in log if key in row]
            ax.plot(*zip(*points), label=label, marker="." if key.startswith("eval") else None)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("episodes")
        ax.grid(alpha=0.3)
        if len(lines) > 1:
            ax.legend(fontsize=8)
    for ax in axes.flat[len(shown):]:
        ax.axis("off")
    with replacing(path, "wb") as f:
        figure.savefig(f, format="png", dpi=110)
    plt.close(figure)


def check_config(config):
    """The stages to compare. Raises UserError for settings that can't work."""
    stages = config.stages.split(",")
    if bad := [s for s in stages if not POLICY.fullmatch(s)]:
        raise UserError(f"--stages={config.stages}: {', '.join(sorted(bad))} is not one of "
                        f"pretrain, sft, ppo, ppo-2 and so on")
    if "sft" not in stages:
        raise UserError(f"--stages={config.stages}: sft must be among them, it is what the others "
                        f"are compared with")
    if config.fresh:
        raise UserError("--fresh: evaluate.py always evaluates anew; give --fresh to the stage "
                        "that is to be made again")
    if config.best_of and config.temperature == 0:
        raise UserError(f"--best_of={config.best_of}: give a --temperature above 0, or there is "
                        f"nothing to choose from")
    return stages


def main():
    config = parse(Config, __doc__, SMOKE)
    stages = check_config(config)
    reward_fn = load_reward(config.reward) if config.reward else None
    number = max(map(round_of, stages))     # of rounds
    reward_stage = in_round("reward", number)
    by_model = config.best_of and not reward_fn
    run = open_run("evaluate", config, stages + ([reward_stage] if by_model else []))
    vocab, judge = run.vocab, load_judge(run.folder)
    models = {"base" if s == "pretrain" else s: run.load_model(s) for s in stages}
    sft = models["sft"]
    heldout_text = read_texts(run, sft.config.block_size)[1]
    path = os.path.join(run.folder, "prompts.jsonl")
    unseen = [row for row in read_jsonl(path, ["prompt"], "heldout") if row.get("unseen")]
    rows = read_heldout(path, ["prompt"], final=True)[:config.prompts]
    n = len(rows)       # these count; prompts of kinds that were never demonstrated come after
    rows = rows + unseen[:config.prompts // 5]
    prompts = [vocab.prompt(row["prompt"]) for row in rows]

    raw_scores, score_name = scorer(run, None, reward_fn, 128) if reward_fn else None, "reward"
    if not judge and not reward_fn:         # nobody knows the truth: ask a second reward model
        path = os.path.join(config.out, "reward-eval.pt")
        if not os.path.exists(path):
            run_stage("reward-eval", config)
        second = model_from(load(path, "reward-eval"), run.device, run.dtype)
        raw_scores, score_name = scorer(run, second, None, 128), "second_rm"

    sampled = {name: sample_responses(model, prompts, run) for name, model in models.items()}
    if k := config.best_of:
        best_by = scorer(run, run.load_model(reward_stage), None, 128) if by_model else raw_scores
        results = run.parents[reward_stage]["results"] if by_model else None
        sampled[f"best of {k}"] = best_of_n(k, sft, best_by, results, rows, prompts, run)
    marks, summary, names = {}, {}, list(sampled)
    for name, responses in sampled.items():
        rollout = Rollout.of(prompts, responses, vocab, sft)
        if name in models:
            kl = kl_per_answer(models[name], sft, rollout, config.temperature)
        else:       # an upper bound (Stiennon et al. 2020; Beirami et al. 2024)
            kl = [math.log(k) - (k - 1) / k] * len(rows)
        marks[name] = [mark | {"kl": nats} for mark, nats in zip(mark_answers(
            rollout, rows, judge, raw_scores, score_name, vocab), kl)]
        text_loss = heldout_text.loss(models.get(name, sft), rows=512)
        summary[name] = summarize(marks[name], rows, n, text_loss)
    points = {name: [m["points"] for m in marks[name][:n]] for name in names}
    for name, column in summary.items():
        share = mean_ci(wins(points[name], points["sft"]))
        column["win_vs_sft"], column["ci"]["win_vs_sft"] = share

    print_table(summary, names, config, n)
    if judge:
        summary["demonstrators"] = mark_demonstrators(run, judge)
    points = "gold score" if judge else score_name
    print_groups(summary, names, "by_kind", f"{points} by kind of instruction (*: never "
                 f"demonstrated)", {row["kind"] for row in unseen})
    print_groups(summary, names, "by_tag", f"{points} by tag")
    print_samples(sampled, marks, rows, n, run)
    if len(stages) > 2:     # summary.json and curves.png are of a whole run
        write_results(summary, number, run)


def write_results(summary, number, run):
    """Write summary.json, curves.png and report.html into OUT; number: of the round."""
    config, seconds = run.config, {}
    for stage in ["pretrain", "sft", *rounds_before(number + 1)]:
        path = os.path.join(config.out, stage + ".pt")
        if os.path.exists(path):
            seconds[stage] = round(load(path)["seconds"], 1)
    summary |= {"seconds": seconds, "seed": config.seed}
    path = os.path.join(config.out, in_round("summary", number) + ".json")
    with replacing(path) as f:
        json.dump(summary, f, indent=1)
    figure = os.path.join(config.out, in_round("curves", number) + ".png")
    report = os.path.join(config.out, in_round("report", number) + ".html")
    log = read_log(os.path.join(config.out, in_round("ppo", number) + ".jsonl"))
    if log:
        draw_curves(log, figure, config.reward)
        save_report(report, config.out, number)
    else:
        print(f"\nno curves: {config.out} has no log of {in_round('ppo', number)}")
    each = ", ".join(f"{stage} {t:.0f} s" for stage, t in seconds.items())
    files = f"{path}, {figure} and {report}" if log else path
    print(f"\nwrote {files}; {each}, {sum(seconds.values()) / 60:.1f} minutes in all")


if __name__ == "__main__":
    entry(main)
