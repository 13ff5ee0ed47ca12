"""
The grader of the coursework kit: points for each exercise, the likely mistake for each failed test.

    python grade.py                    # all exercises, by their tests
    python grade.py gae policy_loss    # these alone
    python grade.py --tests=DIR        # with grader and tests of the project in DIR

For the instructor, who compares DIR's code with slow definitions on fixtures drawn from a seed:

    python course/grade.py --project=DIR --seed=7

An exercise counts when all of its tests are green. What is not written yet is the solution's while
another exercise is graded, so a gap costs its own points alone. An extra is not among the 100
points. The exit code is 0 only at full points.
"""

import argparse
import ast
import base64
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zlib
from typing import NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = HERE if os.path.exists(os.path.join(HERE, "ppo.py")) else os.path.dirname(HERE)
TESTS = os.path.join(PROJECT, "tests")
LIMIT = 1800  # seconds for the tests of one file
PACKED = os.path.join(HERE, "solution.txt")  # in a student's copy, not to be read by accident
GAP = re.compile(r"not written yet: exercise (\w+)")
SHOWN = 3  # lines about an exercise, at most
ROUNDS = 10  # fixtures drawn for each exercise in the mode with a seed


class Exercise(NamedTuple):
    points: int
    functions: str  # to write, by the ends of their dotted names
    tests: str  # names without test_
    formula: str
    uses: str = ""  # exercises without which it can't be graded
    extra: bool = False  # beyond the 100 points


# sheet by sheet
EXERCISES = {
    "attention": Exercise(
        5,
        "plain_attention",
        "fused_attention_equals_the_formula fused_attention_equals_the_formula_under_a_mask",
        "softmax(q kᵀ / √d) v, with −∞ in place of what a query may not see",
    ),
    "sample": Exercise(
        5,
        "sample",
        "sampling_follows_the_distribution_it_says a_token_of_probability_zero_is_never_sampled",
        "token = the first i with p_0 + … + p_i > u, p = softmax(logits / T) cut to top_k, then to "
        "top_p",
    ),
    "generate": Exercise(
        10,
        "GPT.generate",
        "plain_generation_follows_its_definition "
        "plain_generation_is_without_dropout_and_leaves_the_mode_as_it_was "
        "plain_generation_refuses_what_does_not_fit",
        "y_t ~ softmax(logits(x, y_<t) / T), one prompt after the other",
    ),
    "token_logprobs": Exercise(
        5,
        "chosen_logprobs token_logprobs",
        "logprobs_are_not_shifted_by_one logprobs_equal_log_softmax_of_the_position_before "
        "temperature_divides_logits_not_logprobs logprobs_are_computed_in_float32_under_bf16 "
        "a_token_that_can_not_be_drawn_gets_minus_infinity_and_no_nan",
        "log π(y_t | x, y_<t) = z[y_t] − log Σ_v exp z[v], z = logits[t − 1] / T",
    ),
    "masked_mean": Exercise(
        4,
        "masked masked_mean",
        "masked_mean_divides_by_the_tokens_of_the_mask",
        "Σ_t m_t x_t / Σ_t m_t, and 0 where m = 0 everywhere",
    ),
    "sft_loss": Exercise(
        5,
        "sft_loss",
        "sft_loss_is_the_mean_over_response_tokens sft_trains_no_prompt_token "
        "sft_teaches_when_to_stop sft_loss_ignores_what_is_masked "
        "sft_loss_of_an_empty_mask_is_zero_and_differentiable "
        "sft_loss_takes_any_mask_and_keeps_its_precision",
        "−Σ_t m_t log π(y_t | x, y_<t) / Σ_t m_t",
    ),
    "ranking_loss": Exercise(
        7,
        "better_pairs ranking_loss",
        "ties_make_no_pair ranking_loss_of_equal_scores_is_ln_2 winner_and_loser_are_not_swapped "
        "pairs_are_averaged_over_the_batch_and_not_twice "
        "an_empty_slot_reaches_neither_ranking_loss_nor_gradient "
        "no_pair_gives_zero_and_not_nan a_sure_and_wrong_reward_model_does_not_overflow "
        "ranking_loss_keeps_its_precision",
        "−E[log σ(r(x, y_w) − r(x, y_l))], over all pairs of the batch",
    ),
    "ordered_right": Exercise(
        2,
        "ordered_right",
        "the_ceiling_is_of_answers_whose_truth_is_known",
        "of each prompt: pairs with r(x, y_w) > r(x, y_l), equal scores counting ½, and all pairs",
    ),
    "masked_whiten": Exercise(
        4,
        "masked_whiten",
        "mean_of_an_empty_mask_is_zero whitening_ignores_pads_and_divides_by_n "
        "whitening_equal_advantages_gives_zero_not_infinity",
        "(x − μ) / √(σ² + 1e-8), σ² = mean of (x − μ)² over the mask",
    ),
    "kl_rewards": Exercise(
        7,
        "kl_rewards",
        "score_lands_on_the_last_response_token every_row_gets_its_own_score_at_its_own_end "
        "kl_penalty_has_the_right_sign_and_only_on_the_response "
        "kl_is_from_the_policy_to_the_reference",
        "r_t = −β (log π(y_t) − log π_ref(y_t)), + score at the last t",
    ),
    "penalize_missing_eos": Exercise(
        2,
        "penalize_missing_eos",
        "an_answer_without_eos_is_worth_less_than_average",
        "min(score, mean − std) where there is no EOS",
    ),
    "adapt_beta": Exercise(
        2,
        "adapt_beta",
        "adaptive_kl_controller",
        "β ← β (1 + clip(KL / target − 1, ±0.2) · episodes / horizon)",
    ),
    "gae": Exercise(
        9,
        "gae",
        "gae_does_not_bootstrap_past_the_end gae_recursion returns_are_advantages_plus_values "
        "gae_equals_its_definition_with_gaps_in_the_mask "
        "no_gradient_flows_through_rewards_or_advantages",
        "A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t, returns = A + V",
    ),
    "policy_loss": Exercise(
        7,
        "ratio_of policy_loss",
        "policy_clip_is_pessimistic gradient_of_the_first_step_is_that_of_reinforce "
        "microbatches_are_weighted_by_their_tokens prompt_tokens_are_not_trained_on",
        "E[max(−Aρ, −A clip(ρ, 1 ± ε))], ρ = π / π_old",
    ),
    "value_loss": Exercise(
        4,
        "value_loss",
        "value_clip_takes_the_larger_loss",
        "½ E[max((V − R)², (V_clip − R)²)], V_clip = V_old + clip(V − V_old, ±ε)",
    ),
    "forward_values": Exercise(
        3,
        "forward_values",
        "values_are_of_the_state_in_which_a_token_was_chosen",
        "values[t] = V(x, y_<t), the critic's output at t − 1",
    ),
    "response_mask": Exercise(
        3,
        "response_mask",
        "rollout_marks_the_response_and_nothing_else "
        "the_policy_that_was_sampled_is_the_one_that_is_scored",
        "m_t = 1 where len(x) ≤ t < len(x) + len(y)",
    ),
    "ema_update": Exercise(
        2,
        "ema_update",
        "ema_follows_its_formula_and_not_the_raw_weights",
        "average ← d · average + (1 − d) · weights",
    ),
    "together": Exercise(
        4,
        "",
        "no_masked_slot_reaches_any_result_or_gradient poisoned_advantages_and_returns_do_not_leak "
        "bool_integer_and_float_masks_agree arithmetic_is_in_float32_at_least "
        "ppo_lands_on_the_closed_form first_gradient_is_that_of_the_objective "
        "a_wrong_kl_lands_elsewhere scoring_in_parts_equals_scoring_at_once "
        "probe_a_policy_learns_to_repeat_its_prompt",
        "π* ∝ π_ref exp(r / β)",
        "token_logprobs masked_mean masked_whiten kl_rewards gae policy_loss value_loss",
    ),
    "update": Exercise(
        10,
        "ppo_backward ppo.main",
        "advantages_returns_and_old_logprobs_are_frozen_and_whitened_once "
        "logged_kl_and_reward_follow_their_formulas microbatches_change_nothing "
        "gamma_zero_leaves_pretraining_text_out "
        "gamma_multiplies_the_pretraining_gradient_and_nothing_else "
        "rollouts_use_the_raw_weights_and_evaluation_their_average "
        "a_steep_critic_does_not_slow_the_policy first_minibatch_has_ratio_one "
        "a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[ppo]",
        "∇ policy loss + γ ∇ pretraining loss, one step; ½-squared-error step of the critic; EMA",
    ),
    "cache": Exercise(
        10,
        "prefill Batch.step sampling.decode",
        "cached_generation_equals_the_full_forward rows_go_on_correctly_after_others_have_ended "
        "an_answer_ends_with_its_first_eos a_row_does_not_depend_on_the_rows_beside_it "
        "more_prompts_leave_the_first_answers_as_they_were "
        "the_same_generator_gives_the_same_answers_and_another_gives_others "
        "streamed_tokens_are_those_of_generate "
        "generation_runs_without_dropout_and_leaves_the_mode_as_it_was "
        "a_pad_that_may_look_nowhere_makes_no_nan "
        "ids_beyond_the_vocabulary_have_no_logits_and_are_never_sampled",
        "y_t ~ softmax(logits(x, y_<t) / T), for all prompts at once",
        extra=True,
    ),
}

# title: its first exercise
SHEETS = {
    "1. The model speaks": "attention",
    "2. Demonstrations": "token_logprobs",
    "3. Comparisons": "ranking_loss",
    "4. The maths of PPO": "masked_whiten",
    "5. The update": "response_mask",
    "Extra": "cache",
}


def tests_of(name):
    """→ names of an exercise's tests."""
    return [f"test_{test}" for test in EXERCISES[name].tests.split()]


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def files_of_tests(folder):
    """{name of a test: its file}."""
    names = [f for f in sorted(os.listdir(folder)) if f.startswith("test_") and f.endswith(".py")]
    texts = {f: read(os.path.join(folder, f)) for f in names}
    return {name: f for f, text in texts.items() for name in re.findall(r"^def (\w+)", text, re.M)}


# ---- what is not written yet ----


def solution():
    """{file: its text} of the solution, for the files that have gaps."""
    if os.path.exists(PACKED):
        return json.loads(zlib.decompress(base64.b64decode(read(PACKED))))
    if TESTS not in sys.path:
        sys.path.insert(0, TESTS)
    import patch

    found = [patch.find(f) for exercise in EXERCISES.values() for f in exercise.functions.split()]
    return {f.file: f.text for f in found}


def functions_in(text):
    """{name: node} of the functions of a file, and of its classes' ("GPT.generate")."""
    body = ast.parse(text).body
    blocks = [("", body), *((n.name + ".", n.body) for n in body if isinstance(n, ast.ClassDef))]
    return {prefix + n.name: n for prefix, block in blocks for n in block if hasattr(n, "returns")}


def gap(function):
    """The exercise that a function still raises NotImplementedError for, or None."""
    raises = [ast.unparse(n) for n in ast.walk(function) if isinstance(n, ast.Raise)]
    return next((found[1] for text in raises if (found := GAP.search(text))), None)


def fill(folder):
    """Write the solution into the gaps of a copy → {exercise: names of functions with a gap}."""
    missing = {}
    for file, right in solution().items():
        path = os.path.join(folder, file)
        try:
            lines = read(path).splitlines()
            found = functions_in("\n".join(lines))
        except (SyntaxError, OSError):
            continue  # its tests will say so
        solved = functions_in(right)
        for name in sorted(found, key=lambda name: -found[name].lineno):
            node, to = found[name], solved.get(name)
            if to and (exercise := gap(node)):
                missing.setdefault(exercise, []).append(name)
                there = right.splitlines()[to.lineno - 1 : to.end_lineno]
                lines[node.lineno - 1 : node.end_lineno] = there
        with open(path, "w", encoding="utf-8") as f:
            f.write("\n".join(lines) + "\n")
    return missing


def not_written(name, missing):
    """What is to be said of an exercise that has a gap, or needs one that has; else []."""
    if name in missing:
        return [f"not written yet: {', '.join(missing[name])}"]
    needs = [used for used in EXERCISES[name].uses.split() if used in missing]
    return [f"needs what is not written yet: {', '.join(needs)}"] if needs else []


# ---- by the tests ----


def sentence(text):
    """The first line of a failure's message: no name of an exception that says nothing, no digits
    beyond six."""
    line = (text.strip().splitlines() or ["no message"])[0]
    for prefix in ("AssertionError: ", "Failed: "):
        line = line.removeprefix(prefix)
    line = re.sub(r"-?\d+\.\d{6,}", lambda number: f"{float(number[0]):.6g}", line)
    return line if len(line) < 240 else line[:239] + "…"


def beside(tests, folder, temporary):
    """A copy of the student's folder with other tests, and the pytest settings that they need."""
    copy = os.path.join(temporary, "project")
    theirs = ["tests", "out", ".*", "__pycache__", "conftest.py"]
    settings = ["pyproject.toml", "pytest.ini", "tox.ini", "setup.cfg"]
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(*theirs, *settings))
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(tests, os.path.join(copy, "tests"), ignore=ignore)
    right = os.path.join(os.path.dirname(tests), settings[0])
    if os.path.exists(right):
        shutil.copy(right, copy)
    return copy


def run_tests(wanted, folder, tests):
    """Run tests of the folder `tests` on a student's code → {case: what went wrong, or None}."""
    there = files_of_tests(tests)
    by_file = {}  # each on its own: one that can't be loaded would stop them all
    for test in wanted:
        by_file.setdefault(there.get(test.split("[")[0]), []).append(test)
    by_file.pop(None, None)
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        if os.path.realpath(tests) != os.path.realpath(os.path.join(folder, "tests")):
            folder = beside(tests, folder, temporary)
        for file, names in by_file.items():
            report = os.path.join(temporary, file + ".xml")
            found |= run_file(file, names, folder, report)
    return found


def run_file(file, names, folder, report):
    nodes = [os.path.join("tests", file) + "::" + name for name in names]
    flags = ["-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *flags, *nodes]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        why = f"its file's tests took more than {LIMIT} s: is there a loop without end?"
        return dict.fromkeys(names, why)
    if not os.path.exists(report):
        said = (done.stderr or done.stdout).strip()[-200:]
        return dict.fromkeys(names, f"pytest did not come to its end: {said}")
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = next((x for x in case if x.tag in ("failure", "error", "skipped")), None)
        if not case.get("classname"):  # the file could not be imported
            lines = (bad.text or "").splitlines()
            why = " ".join(line[1:].strip() for line in lines if line.startswith("E "))
            return dict.fromkeys(names, f"its file can't be loaded: {why[-300:]}")
        found[case.get("name")] = None if bad is None else sentence(bad.get("message") or "")
    return found


def cases_of(test, found):
    """{case: what went wrong, or None} of one test, whatever its parameters."""
    return {case: why for case, why in found.items() if test in (case, case.split("[")[0])}


def by_tests(names, folder, tests):
    """→ {exercise: list of what failed}."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = beside(tests, folder, temporary)
        missing = fill(copy)
        failed = {name: not_written(name, missing) for name in names}
        wanted = [test for name in names if not failed[name] for test in tests_of(name)]
        found = run_tests(wanted, copy, os.path.join(copy, "tests"))
    for name in names:
        for test in tests_of(name) if not failed[name] else ():
            cases = cases_of(test, found) or {test: "did not run"}
            failed[name] += [f"{case}: {why}" for case, why in cases.items() if why]
    return failed


# ---- by slow definitions, with a seed ----


def by_seed(names, seed, code):
    """→ {exercise: list of what failed}: the checks of slow.py, on fixtures drawn from the seed.

    code: slow.Code, the project's functions.
    """
    import slow
    import torch

    torch.set_num_threads(1)
    failed = {}
    for name in names:
        failed[name] = []
        for i in range(ROUNDS):
            bits = random.Random(f"{seed} {name} {i}").getrandbits(60)
            rng = torch.Generator().manual_seed(bits)
            try:
                getattr(slow, "check_" + name)(code, rng)
            except (Exception, SystemExit) as e:  # a student's code costs its own points only
                failed[name].append(f"draw {i + 1}: {sentence(f'{type(e).__name__}: {e}')}")
                break
    return failed


def by_seed_in(names, seed, folder):
    """by_seed of a student's folder, its gaps filled → {exercise: list of what failed}."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = beside(TESTS, folder, temporary)
        missing = fill(copy)
        failed = {name: not_written(name, missing) for name in names}
        # in this order, or a student's own slow.py would do the grading
        sys.path[:0] = [HERE, TESTS, copy]
        import slow

        written = [name for name in names if not failed[name]]
        return failed | by_seed(written, seed, slow.Code())


def shown(why):
    """What is printed of an exercise: SHOWN lines at most."""
    if len(why) <= SHOWN:
        return why
    return [*why[: SHOWN - 1], f"and {len(why) - SHOWN + 1} more"]


def report(failed):
    """Print points, then what failed → exit code, 0 at full points."""
    graded = [name for name in failed if not EXERCISES[name].extra]
    for name, why in failed.items():
        points, about = EXERCISES[name].points, " (extra)" if EXERCISES[name].extra else ""
        print(f"{name + about:<22}{0 if why else points:>3} / {points}")
    if graded:
        total = sum(EXERCISES[name].points for name in graded)
        reached = sum(EXERCISES[name].points for name in graded if not failed[name])
        print(f"{'total':<22}{reached:>3} / {total}")
    for name, why in failed.items():
        if why:
            print("\n" + name, *(f"    {line}" for line in shown(why)), sep="\n")
    return 1 if any(failed[name] for name in graded or failed) else 0


def go_on_as(args, project):
    """Become the grader of the project that --tests names."""
    path = os.path.abspath(args.tests)
    graders = [os.path.join(p, "course", "grade.py") for p in (path, os.path.dirname(path))]
    grader = next((g for g in graders if os.path.exists(g)), None)
    if not grader:
        sys.exit(
            f"error: --tests={args.tests}: no course/grade.py is there; give the project's folder"
        )
    seed = [f"--seed={args.seed}"] if args.seed else []
    sys.stdout.flush()
    command = [sys.executable, grader, f"--project={project}", *seed, *args.exercises]
    os.execv(sys.executable, command)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exercises", nargs="*", metavar="exercise", help="default: all")
    parser.add_argument(
        "--project", default=PROJECT, help="a student's folder, in place of this one"
    )
    parser.add_argument("--tests", help="a project whose grader and tests take the place of these")
    parser.add_argument("--seed", help="draw fixtures from it, and compare with slow definitions")
    args = parser.parse_args()
    if wrong := [n for n in args.exercises if n not in EXERCISES]:
        sys.exit(f"error: no exercise {wrong[0]!r}; there are: {', '.join(EXERCISES)}")
    project = os.path.abspath(args.project)
    if not os.path.exists(os.path.join(project, "ppo.py")):
        sys.exit(f"error: {project} holds no ppo.py: give --project=DIR, a student's folder")
    if args.tests:
        go_on_as(args, project)
    names = args.exercises or list(EXERCISES)
    if not args.seed:
        sys.exit(report(by_tests(names, project, TESTS)))
    if not os.path.exists(os.path.join(HERE, "slow.py")):
        sys.exit(
            "error: --seed needs the slow definitions, which are not part of a student's copy: "
            "give --tests=DIR, the instructor's project"
        )
    sys.exit(report(by_seed_in(names, args.seed, project)))


if __name__ == "__main__":
    main()
