"""
A run as one HTML file that needs nothing else: its curves, its table, and how PPO changed the
answers to the same held-out prompts. `python ppo.py` ends with it, and page.py serves it.
"""
import base64
import hashlib
import json
import os

import torch
from torch.nn.utils.rnn import pad_sequence

from data import read_json, read_text, replacing, turns_of
from plumbing.run import read_log
from plumbing.stages import in_round
from ppo import gae, kl_rewards

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "plumbing", "page.html")
POINTS = 200        # of a curve, at most


def panels(log, reward=""):
    """What PPO's log has to show → {title: {key: label}}. reward: the function it had, if any."""
    scores = {"reward-model score": {"objective/scores": "rollouts", "eval/score": "held out"}}
    if reward:
        scores = {"score, rollouts; SFT's have mean 0, spread 1": {"objective/scores": ""},
                  f"{reward}, held-out prompts": {"eval/score": ""}}
    found = scores | {
        "gold score, held-out prompts": {"eval/gold": ""},
        "KL to SFT, nats an answer": {"objective/kl": "k1", "objective/kl_k3": "k3"},
        "entropy, nats an answer": {"objective/entropy": ""},
        "share of ratios clipped": {"policy/clipfrac_avg": ""},
        "response length, tokens": {"response/length": ""},
        "loss on pretraining text, nats a token": {"loss/ptx_avg": "ptx batches",
                                                   "eval/pretrain_loss": "held out"},
        "explained variance of the critic": {"val/explained_variance": ""}}
    return {title: lines for title, lines in found.items()
            if any(key in row for row in log for key in lines)}


def curve(log, key):
    """A metric's points (step, y), POINTS at most; each is the mean of those it stands for."""
    points = [(row["step"] + 1, row[key]) for row in log if key in row]
    size = -(-len(points) // POINTS)
    parts = [points[i:i + size] for i in range(0, len(points), size or 1)]
    return [[round(sum(values) / len(part), 5) for values in zip(*part)] for part in parts]


def curves(out, number, reward):
    """The figures of all stages: [{title, x, lines: [{label, points}]}], PPO's first."""
    def figure(title, x, lines, log):
        drawn = [{"label": label, "points": curve(log, key)} for key, label in lines.items()]
        return {"title": title, "x": x, "lines": [line for line in drawn if line["points"]]}
    log = read_log(os.path.join(out, in_round("ppo", number) + ".jsonl"))
    found = [figure(title, "iterations", lines, log)
             for title, lines in panels(log, reward).items()]
    for stage, title, heldout in [(in_round("reward", number), "reward model: loss", "eval/loss"),
                                  ("sft", "SFT: loss on responses", "eval/loss"),
                                  ("pretrain", "pretraining: loss", "eval/pretrain_loss")]:
        lines = {"loss": "training", heldout: "held out"}
        found.append(figure(title, "steps", lines, read_log(os.path.join(out, stage + ".jsonl"))))
    return [picture for picture in found if picture["lines"]]


def table(out, number):
    """summary.json as {columns, rows: [[name, [[mean, half of its interval], …]], …]}, or None."""
    path = os.path.join(out, in_round("summary", number) + ".json")
    if not os.path.exists(path):
        return None
    summary = read_json(path)
    names = [name for name, column in summary.items()
             if isinstance(column, dict) and "by_tag" in column]
    rows = [[key, [[summary[name].get(key), summary[name]["ci"].get(key)] for name in names]]
            for key in summary["sft"]["ci"] if summary["sft"][key] is not None]
    rows += [["gold: " + tag, [summary[name]["by_tag"].get(tag, [None, None]) for name in names]]
             for tag in sorted(summary["sft"]["by_tag"])]
    return {"columns": names, "rows": rows}


def answers(lines):
    """The lines that rollout.log_answers wrote → {prompts, steps}, with a KL and an advantage for
    each token: PPO's own, but not whitened."""
    if not lines:
        return None
    every = [answer for line in lines for answer in line["answers"]]

    def padded(name):
        return pad_sequence([torch.tensor(answer[name]) for answer in every], batch_first=True)
    logprobs, ref_logprobs, values = map(padded, ("logprobs", "ref_logprobs", "values"))
    mask = pad_sequence([torch.ones(len(answer["values"])) for answer in every], batch_first=True)
    beta = torch.tensor([[line["beta"]] for line in lines for _ in line["answers"]])
    scores = torch.tensor([answer["score"] for answer in every])
    rewards = kl_rewards(scores, logprobs, ref_logprobs, mask, beta)
    advantages, _ = gae(rewards, values, mask, lines[0]["gamma"], lines[0]["lam"])
    kl = logprobs - ref_logprobs
    for i, answer in enumerate(every):
        for name, x in (("kl", kl), ("advantage", advantages)):
            answer[name] = [round(n, 3) for n in x[i, :len(answer["tokens"])].tolist()]
    shown = ("tokens", "kl", "values", "advantage", "logprobs", "score", "gold")
    return {"prompts": [turns_of(answer["prompt"]) for answer in lines[0]["answers"]],
            "iterations": lines[0]["iterations"],
            "steps": [{"step": line["step"], "answers": [
                {key: answer[key] for key in shown} for answer in line["answers"]]}
                for line in lines]}


def run_data(out, number=1):
    """All that page.html shows of a run, as far as there is a file with it."""
    lines = read_log(os.path.join(out, in_round("ppo", number) + ".answers.jsonl"))
    return {"title": out, "curves": curves(out, number, lines[0]["reward"] if lines else ""),
            "table": table(out, number), "answers": answers(lines)}


def to_html(data):
    """page.html with the data in it. No text of a model can end the script tag that it stands in.

    A browser runs the one script whose hash the page names, and asks nobody but its own server.
    """
    page = read_text(TEMPLATE)
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.loads(json.dumps(data), parse_constant=lambda name: None)     # NaN is no JSON
    return page.replace("SCRIPT-HASH", "sha256-" + digest, 1).replace(
        "PAGE-DATA", json.dumps(data).replace("<", "\\u003c"), 1)


def save_report(path, out, number=1):
    """Write the run of folder `out` as one HTML file."""
    with replacing(path) as f:
        f.write(to_html(run_data(out, number)))
