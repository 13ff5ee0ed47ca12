"""
The grader of the coursework kit: points for each exercise, and for each failed test the likely mistake.

    python grade.py                    # all exercises, by their tests
    python grade.py gae policy_loss    # these alone
    python tests/grade.py --project=DIR --seed=N    # instructor: DIR's code against slow definitions, on fixtures drawn from the seed
    python grade.py --tests=PATH       # grader, tests and slow definitions of another copy, so that this folder's don't count

An exercise counts when all of its tests are green. The exit code is 0 only at full points.
"""
import importlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = HERE if os.path.exists(os.path.join(HERE, "ppo.py")) else os.path.dirname(HERE)
TESTS = os.path.join(PROJECT, "tests")
LIMIT = 1800        # seconds for the tests of one file
ROUNDS = 10         # fixtures drawn for each exercise in the mode with a seed

# name: (points, functions to write, file of tests: names without test_, formula), in the order in which they build on each other
EXERCISES = {
    "attention": (5, "model.plain_attention", "model: fused_attention_equals_the_formula fused_attention_equals_the_formula_under_a_mask",
                  "softmax(q kᵀ / √d) v, with −∞ in place of what a query may not see"),
    "sample": (5, "model.sample", "model: sampling_follows_the_distribution_it_says a_token_of_probability_zero_is_never_sampled "
               "impossible_top_k_and_top_p_are_refused", "token = the first i with p_0 + … + p_i > u, p = softmax(logits / T) cut to top_k, then to top_p;\n    a top_k below 1, or a top_p outside of (0, 1], is a ValueError that names it"),
    "generate": (10, "model.GPT._steps", "model: cached_generation_equals_the_full_forward rows_go_on_correctly_after_others_have_ended "
                 "an_answer_ends_with_its_first_eos a_row_does_not_depend_on_the_rows_beside_it more_prompts_leave_the_first_answers_as_they_were "
                 "the_same_generator_gives_the_same_answers_and_another_gives_others streamed_tokens_are_those_of_generate "
                 "generation_runs_without_dropout_and_leaves_the_mode_as_it_was ids_beyond_the_vocabulary_have_no_logits_and_are_never_sampled",
                 "y_t ~ softmax(logits(x, y_<t) / T), for all prompts at once"),
    "token_logprobs": (5, "ppo.token_logprobs", "losses: logprobs_are_not_shifted_by_one logprobs_equal_log_softmax_of_the_position_before "
                       "temperature_divides_logits_not_logprobs logprobs_are_computed_in_float32_under_bf16 "
                       "a_token_that_can_not_be_drawn_gets_minus_infinity_and_no_nan", "log π(y_t | x, y_<t) = z[y_t] − log Σ_v exp z[v], z = logits[t − 1] / T"),
    "sft_loss": (5, "sft.sft_loss", "losses: sft_loss_is_the_mean_over_response_tokens sft_trains_no_prompt_token sft_teaches_when_to_stop "
                 "sft_loss_ignores_what_is_masked sft_loss_of_an_empty_mask_is_zero_and_differentiable sft_loss_takes_any_mask_and_keeps_its_precision",
                 "−Σ_t m_t log π(y_t | x, y_<t) / Σ_t m_t"),
    "ranking_loss": (7, "reward.better_pairs reward.ranking_loss", "losses: ranking_loss_of_equal_scores_is_ln_2 winner_and_loser_are_not_swapped "
                     "pairs_are_averaged_over_the_batch_and_not_twice ties_make_no_pair an_empty_slot_reaches_neither_ranking_loss_nor_gradient "
                     "no_pair_gives_zero_and_not_nan a_sure_and_wrong_reward_model_does_not_overflow ranking_loss_keeps_its_precision",
                     "−E[log σ(r(x, y_w) − r(x, y_l))], over all pairs of the batch"),
    "accuracy": (2, "reward.accuracy", "data: the_ceiling_is_of_answers_whose_truth_is_known", "share of pairs with r(x, y_w) > r(x, y_l), equal scores counting ½"),
    "masked_mean": (4, "ppo.shown ppo.masked_mean", "losses: masked_mean_divides_by_the_tokens_of_the_mask", "Σ_t m_t x_t / Σ_t m_t, and 0 where m = 0 everywhere"),
    "masked_whiten": (4, "ppo.masked_whiten", "losses: mean_of_an_empty_mask_is_zero whitening_ignores_pads_and_divides_by_n "
                      "whitening_equal_advantages_gives_zero_not_infinity", "(x − μ) / √(σ² + 1e-8), σ² = mean of (x − μ)² over the mask"),
    "kl_rewards": (7, "ppo.kl_rewards", "losses: score_lands_on_the_last_response_token every_row_gets_its_own_score_at_its_own_end "
                   "kl_penalty_has_the_right_sign_and_only_on_the_response kl_is_from_the_policy_to_the_reference",
                   "r_t = −β (log π(y_t) − log π_ref(y_t)), + score at the last t"),
    "eos_rule": (2, "ppo.eos_rule", "losses: an_answer_without_eos_is_worth_less_than_average", "min(score, mean − std) where there is no EOS"),
    "adapt_beta": (2, "ppo.adapt_beta", "losses: adaptive_kl_controller", "β ← β (1 + clip(KL / target − 1, ±0.2) · episodes / horizon)"),
    "gae": (9, "ppo.gae", "losses: gae_does_not_bootstrap_past_the_end gae_recursion returns_are_advantages_plus_values "
            "gae_equals_its_definition_with_gaps_in_the_mask no_gradient_flows_through_rewards_or_advantages",
            "A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t, returns = A + V"),
    "policy_loss": (7, "ppo.policy_loss", "losses: policy_clip_is_pessimistic gradient_of_the_first_step_is_that_of_reinforce microbatches_are_weighted_by_their_tokens\n"
                    "ppo: prompt_tokens_are_not_trained_on", "E[max(−Aρ, −A clip(ρ, 1 ± ε))], ρ = π / π_old"),
    "value_loss": (4, "ppo.value_loss", "losses: value_clip_takes_the_larger_loss", "½ E[max((V − R)², (V_clip − R)²)], V_clip = V_old + clip(V − V_old, ±ε)"),
    "forward_values": (3, "ppo.forward_values", "ppo: values_are_of_the_state_in_which_a_token_was_chosen", "values[t] = V(x, y_<t), the critic's output at t − 1"),
    "rollout": (3, "ppo.rollout", "ppo: rollout_marks_the_response_and_nothing_else the_policy_that_was_sampled_is_the_one_that_is_scored",
                "m_t = 1 where len(x) ≤ t < len(x) + len(y)"),
    "ema_update": (2, "ppo.ema_update", "ppo: ema_follows_its_formula_and_not_the_raw_weights", "average ← d · average + (1 − d) · weights"),
    "together": (4, "", "losses: no_masked_slot_reaches_any_result_or_gradient poisoned_advantages_and_returns_do_not_leak bool_integer_and_float_masks_agree "
                 "arithmetic_is_in_float32_at_least\nppo: ppo_lands_on_the_closed_form first_gradient_is_that_of_the_objective a_wrong_kl_lands_elsewhere "
                 "scoring_in_parts_equals_scoring_at_once probe_a_policy_learns_to_repeat_its_prompt", "π* ∝ π_ref exp(r / β)"),
    "update": (10, "ppo.main", "recipe: advantages_returns_and_old_logprobs_are_frozen_and_whitened_once logged_kl_and_reward_follow_their_formulas "
               "microbatches_change_nothing gamma_zero_leaves_pretraining_text_out "
               "gamma_multiplies_the_pretraining_gradient_and_nothing_else rollouts_use_the_raw_weights_and_evaluation_their_average "
               "a_steep_critic_does_not_slow_the_policy first_minibatch_has_ratio_one\nresume: a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[ppo]",
               "∇ policy loss + γ ∇ pretraining loss, one step; ½-squared-error step of the critic; EMA"),
}


def tests_of(name):
    """→ list of (file, test) of an exercise."""
    lines = [line.split(": ") for line in EXERCISES[name][2].split("\n")]
    return [(f"test_{file}", f"test_{test}") for file, tests in lines for test in tests.split()]


def sentence(text):
    """The first line of a failure's message, without the exception's name where that says nothing."""
    line = (text.strip().splitlines() or ["no message"])[0]
    for prefix in ("AssertionError: ", "Failed: "):
        line = line.removeprefix(prefix)
    return line[:300]


def run_tests(wanted, folder, tests):
    """Run pytest on (file, test) pairs → {(file, case): what went wrong, or None}. Student's code in `folder`, tests in `tests`.

    Tests of another copy are put beside a copy of the student's files, since they import what lies in the folder above them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if os.path.realpath(tests) != os.path.realpath(os.path.join(folder, "tests")):
            copy = os.path.join(temporary, "project")
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(
                "tests", "out", ".*", "__pycache__", "conftest.py", "pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml"))
            shutil.copytree(tests, os.path.join(copy, "tests"), ignore=shutil.ignore_patterns("__pycache__"))
            folder = copy
        report, found = os.path.join(temporary, "report.xml"), {}
        for file in dict.fromkeys(file for file, _ in wanted):      # each on its own: one that can't be loaded would stop them all
            ids = [os.path.join("tests", file + ".py") + "::" + test for f, test in wanted if f == file]
            command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={report}", *ids]
            try:
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT)
            except subprocess.TimeoutExpired:
                found[file, file] = f"its file's tests took more than {LIMIT} s: a loop without end?"
                continue
            if not os.path.exists(report):
                found[file, file] = f"pytest did not come to its end: {(done.stderr or done.stdout).strip()[-200:]}"
                continue
            for case in ElementTree.parse(report).iter("testcase"):
                bad = next((x for x in case if x.tag in ("failure", "error", "skipped")), None)
                why = None if bad is None else sentence(bad.get("message") or "")
                if not case.get("classname"):       # the file could not be imported
                    why = "its file can't be loaded: " + " ".join(x[1:].strip() for x in (bad.text or "").splitlines() if x.startswith("E "))[-300:]
                found[file, case.get("name")] = why
            os.remove(report)
    return found


def cases_of(test, found):
    """{case: what went wrong, or None} of one (file, test), whatever its parameters."""
    return {case: why for (file, case), why in found.items() if file == test[0] and test[1] in (case, case.split("[")[0])}


def by_tests(names, folder, tests):
    """→ {exercise: list of what failed}."""
    found = run_tests([t for name in names for t in tests_of(name)], folder, tests)
    broken = {file: why for (file, case), why in found.items() if case.split(".")[-1] == file}      # a file that can't be loaded is a case of its own
    failed = {}
    for name in names:
        failed[name] = []
        for file, test in tests_of(name):
            cases = cases_of((file, test), found)
            failed[name] += [f"{case}: {why}" for case, why in cases.items() if why]
            if not cases:
                failed[name].append(f"{test}: {broken.get(file, 'did not run')}")
    return failed


class Modules:
    """The project's modules, imported when a check asks for them: a mistake in one file leaves the others' points."""

    def __getattr__(self, name):
        return importlib.import_module(name)


def by_seed(names, seed, modules):
    """→ {exercise: list of what failed}: each check of slow.py on fixtures drawn from the seed."""
    import slow
    import torch
    failed = {}
    for name in names:
        failed[name] = []
        for i in range(ROUNDS):
            rng = torch.Generator().manual_seed(random.Random(f"{seed} {name} {i}").getrandbits(60))
            try:
                getattr(slow, "check_" + name)(modules, rng)
            except (Exception, SystemExit) as e:        # whatever a student's code does costs its own points only
                failed[name].append(f"draw {i + 1}: {sentence(f'{type(e).__name__}: {e}')}")
                break
    return failed


def report(failed):
    """Print points → exit code."""
    reached = 0
    for name, why in failed.items():
        points = EXERCISES[name][0]
        reached += 0 if why else points
        print(f"{name:<16}{0 if why else points:>3} / {points}")
        for line in why:
            print(f"    {line}")
    total = sum(EXERCISES[name][0] for name in failed)
    print(f"{'total':<16}{reached:>3} / {total}")
    return 0 if reached == total else 1


def main():
    given = dict(arg[2:].split("=", 1) for arg in sys.argv[1:] if arg.startswith("--") and "=" in arg)
    names = [arg for arg in sys.argv[1:] if not arg.startswith("--")]
    if wrong := [a for a in sys.argv[1:] if a.startswith("-") and a.split("=")[0] not in ("--seed", "--tests", "--project") or a.startswith("--") and "=" not in a]:
        sys.exit(f"error: unknown flag {wrong[0]}; there are --seed=N, --tests=PATH and --project=DIR")
    if wrong := [n for n in names if n not in EXERCISES]:
        sys.exit(f"error: no exercise {wrong[0]!r}; there are: {', '.join(EXERCISES)}")
    project = os.path.abspath(given.get("project", PROJECT))
    if not os.path.exists(os.path.join(project, "ppo.py")):
        sys.exit(f"error: {project} holds no ppo.py: give --project=DIR, a student's folder")
    if "tests" in given:
        path = os.path.abspath(given["tests"])
        grader = next((g for g in (os.path.join(path, "grade.py"), os.path.join(path, "tests", "grade.py")) if os.path.exists(g)), None)
        if not grader:
            sys.exit(f"error: --tests={given['tests']}: no grade.py is there; give the tests folder of the instructor's copy")
        seed = [f"--seed={given['seed']}"] if "seed" in given else []
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, grader, f"--project={project}", *seed, *names])
    if "seed" not in given:
        sys.exit(report(by_tests(names or list(EXERCISES), project, TESTS)))
    if not os.path.exists(os.path.join(TESTS, "slow.py")):
        sys.exit("error: --seed needs the slow definitions, which are not part of a student's copy: give --tests=PATH, the tests folder of the instructor's")
    sys.path[:0] = [TESTS, project]     # in this order, or a student's own slow.py would do the grading
    sys.exit(report(by_seed(names or list(EXERCISES), given["seed"], Modules())))


if __name__ == "__main__":
    main()
