"""
Plants bugs, one at a time, and sees whether the tests turn red.

    python tests/plant.py              # all of them
    python tests/plant.py 19 EMA       # those of bug 19 and of EMA
    python tests/plant.py --jobs=1     # one at a time; the default is two
    python tests/plant.py --list       # what would be planted, and where
    python tests/plant.py --table      # the table of tests/README.md

Prints `bug <tab> test <tab> red` or `MISSED` for each plant. Exit code 0: all are red; 1: one was missed; 2: the
answer means nothing, because a text to replace is not there exactly once, a test is red without a plant, or a plant
breaks the program (a NameError, say) instead of making it wrong.

A plant is a row of PLANTS: the bug, what is done, the file, the text to replace, by what, and the test meant for it.
Each runs in a copy of the project and in a fork of this process, which has loaded torch but none of the project.
"""
import ast
import functools
import json
import os
import re
import shutil
import signal
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

BUGS = {
    1: "log-probability or value off by one",
    2: "ratio ≠ 1 on the first minibatch",
    3: "wrong positions of ragged prompts",
    4: "score on a PAD, on the prompt, or before the end",
    5: "reward model read at the wrong token",
    6: "GAE bootstraps past the end of the answer",
    7: "GAE recursion",
    8: "a masked slot reaches result or gradient",
    9: "prompt tokens or PADs trained on",
    10: "sign or direction of the KL",
    11: "gradient through rewards, advantages or old log-probabilities",
    12: "networks that share storage, or a reference that moves",
    13: "sampling and scoring temperature differ",
    14: "top-k or top-p in rollouts",
    15: "KV cache ≠ full forward",
    16: "whitening: mask, or variance convention",
    17: "gradient accumulation as a mean of means",
    18: "advantages normalised per minibatch or microbatch",
    19: "policy clip",
    20: "value clip",
    21: "advantages, returns or old values recomputed, or returns of whitened advantages",
    22: "EOS not among the targets, or tokens after it kept",
    23: "ids beyond the true vocabulary",
    24: "ranking loss: swapped, averaged twice, ties or equal answers kept",
    25: "gradient clipping: order, and over which parameters",
    26: "adaptive KL controller",
    27: "networks in train mode during PPO",
    28: "logged numbers that do not add up",
    29: "ptx gradient and γ",
    30: "a resumed run is another run",
    "EMA": "moving average of the weights",
    "EOS rule": "the score of an answer without EOS",
    "halves": "held-out prompts: what is looked at, and what is in the final table",
    "splits": "training and held-out prompts",
    "text": "text to tokens and back",
    "files": "checkpoints and other files",
    "GPT-2": "the architecture, against transformers",
    "sampling": "drawing a token",
    "reward model": "head, shift, precision",
    "precision": "float32 at least, in the memory there is",
    "optimiser": "schedule and weight decay",
    "rounds": "a further round of comparisons, reward model and PPO",
    "function": "a function as the reward",
    "best of n": "which answer is the best",
}

PLANTS = [
    (1, "the logits at t score the token at t", "ppo.py",
     "tokens[:, 1:, None]", "tokens[:, :-1, None]", "test_logprobs_are_not_shifted_by_one"),
    (1, "log-probabilities stand one column early", "ppo.py",
     "F.pad(chosen - logits.logsumexp(-1), (1, 0))", "F.pad(chosen - logits.logsumexp(-1), (0, 1))",
     "test_logprobs_equal_log_softmax_of_the_position_before"),
    (1, "in SFT", "sft.py",
     "    logits = logits[:, :-1]\n", "    logits = logits[:, 1:]\n", "test_sft_loss_is_the_mean_over_response_tokens"),
    (1, "in pretraining", "pretrain.py",
     "logits[:, :-1].float()", "logits[:, 1:].float()", "test_pretraining_loss_predicts_the_next_token"),
    (1, "the value at t knows the token at t", "ppo.py",
     "F.pad(forward(critic, tokens, cast)[:, :-1], (1, 0))", "forward(critic, tokens, cast)",
     "test_values_are_of_the_state_in_which_a_token_was_chosen"),

    (1, "the logits of the response alone are of the tokens after it", "ppo.py",
     "x = model.hidden(tokens)[:, :-1][asked] ", "x = model.hidden(tokens)[:, 1:][asked] ", "test_logits_of_the_response_alone_give_the_logprobs_of_all"),
    (2, "dropout is on", "ppo.py",
     'policy = model_from(run.parents[policy_before(config.round)]).to(run.device)\n',
     'policy = model_from(run.parents[policy_before(config.round)]).to(run.device)\n    policy.train().dropout = 0.1\n',
     "test_first_minibatch_has_ratio_one"),
    (2, "the update pads on the left", "ppo.py",
     "new = forward_logprobs(policy, x, config.temperature, run.cast, m)",
     "new = forward_logprobs(policy, x.roll(1, 1), config.temperature, run.cast).roll(-1, 1)",
     "test_first_minibatch_has_ratio_one"),
    (2, "nothing looks at the ratio", "ppo.py",
     "if iteration == epoch == n == 0:", "if iteration == epoch == n == -1:", "test_first_minibatch_has_ratio_one"),
    (2, "whoever looks lets NaN pass", "ppo.py",
     "if not worst < bound", "if worst > bound", "test_a_ratio_of_nan_is_stopped"),
    (2, "whoever looks is too patient", "ppo.py",
     "bound = 1e-4 if", "bound = 0.25 if", "test_a_ratio_slightly_off_one_is_stopped_in_float32"),
    (2, "scored in parts, rows get the numbers of other rows", "ppo.py",
     "out[rows, :longest] = function", "out[rows.sort().values, :longest] = function", "test_scoring_in_parts_equals_scoring_at_once"),

    (3, "positions count the PADs on the left", "model.py",
     "positions = (columns[:P] - pads[:, None]).clamp(min=0)", "positions = columns[:P].expand(B, P)",
     "test_cached_generation_equals_the_full_forward"),
    (3, "new tokens are placed after the longest prompt", "model.py",
     "self.hidden(new[:, None], (column - pads)[:, None]", "self.hidden(new[:, None], (column - 0 * pads)[:, None]", "test_cached_generation_equals_the_full_forward"),
    (3, "another row's length moves this one", "model.py",
     "positions = (columns[:P] - pads[:, None]).clamp(min=0)", "positions = (columns[:P] - pads[:, None] + pads.max()).clamp(min=0)",
     "test_a_row_does_not_depend_on_the_rows_beside_it"),

    (4, "in the last column", "ppo.py",
     "torch.where(mask != 0, columns, -1).amax(1, keepdim=True)", "torch.full((len(mask), 1), mask.size(1) - 1)",
     "test_score_lands_on_the_last_response_token"),
    (4, "on the PAD after EOS", "ppo.py",
     "torch.where(columns == last,", "torch.where(columns == last + 1,", "test_score_lands_on_the_last_response_token"),
    (4, "on the first token of the response", "ppo.py",
     "torch.where(mask != 0, columns, -1).amax(1, keepdim=True)", "torch.where(mask != 0, columns, 10**6).amin(1, keepdim=True)",
     "test_score_lands_on_the_last_response_token"),
    (4, "on the last token of the prompt", "ppo.py",
     "torch.where(mask != 0, columns, -1).amax(1, keepdim=True)", "torch.where(mask != 0, columns, 10**6).amin(1, keepdim=True) - 1",
     "test_score_lands_on_the_last_response_token"),
    (4, "where the longest row ends", "ppo.py",
     "columns, -1).amax(1, keepdim=True)", "columns, -1).amax()", "test_every_row_gets_its_own_score_at_its_own_end"),

    (5, "in the last column", "model.py",
     "return self(tokens).gather(1, (lengths.long() - 1)[:, None]).squeeze(1)", "return self(tokens)[:, -1]",
     "test_score_is_read_at_the_last_real_token"),
    (5, "one token too early", "model.py",
     "(lengths.long() - 1)[:, None]", "(lengths.long() - 2).clamp(min=0)[:, None]", "test_score_is_read_at_the_last_real_token"),
    (5, "mean over the row, PADs included", "model.py",
     "return self(tokens).gather(1, (lengths.long() - 1)[:, None]).squeeze(1)", "return self(tokens).mean(1)",
     "test_score_ignores_pads_and_an_eos_inside_the_prompt"),
    (5, "at the first EOS, which is in the prompt", "model.py",
     "(lengths.long() - 1)[:, None]", "(tokens == tokens[0, lengths[0] - 1]).int().argmax(1)[:, None]",
     "test_score_ignores_pads_and_an_eos_inside_the_prompt"),
    (5, "PPO reads the last column", "ppo.py",
     "outputs.gather(1, lengths[:, None] - 1)", "outputs[:, -1:]", "test_every_answer_is_scored_at_its_own_end_by_a_model_that_stays"),
    (5, "PPO reads one token too early", "ppo.py",
     "outputs.gather(1, lengths[:, None] - 1)", "outputs.gather(1, lengths[:, None] - 2)",
     "test_every_answer_is_scored_at_its_own_end_by_a_model_that_stays"),

    (6, "the whole recursion is unmasked", "ppo.py",
     "    rewards, values = shown(rewards, mask), shown(values, mask)\n    advantages", "    mask = torch.ones_like(mask)\n    advantages",
     "test_gae_does_not_bootstrap_past_the_end"),
    (6, "only V after EOS leaks", "ppo.py",
     """    rewards, values = shown(rewards, mask), shown(values, mask)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
""", """    raw = values
    rewards, values = shown(rewards, mask), shown(values, mask)
    advantages = torch.zeros_like(values)
    next_advantage = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
        next_value = raw[:, t + 1] if t + 1 < raw.size(1) else torch.zeros_like(raw[:, 0])
""", "test_gae_does_not_bootstrap_past_the_end"),
    (6, "V of the last token is taken for the value after it", "ppo.py",
     "    next_value = next_advantage = torch.zeros_like(values[:, 0])\n",
     "    next_value, next_advantage = values[:, -1], torch.zeros_like(values[:, 0])\n",
     "test_gae_recursion"),
    (6, "the recursion starts anew after a gap in the mask", "ppo.py",
     "next_advantage = torch.where(here, advantage, next_advantage)", "next_advantage = shown(advantage, here)",
     "test_gae_equals_its_definition_with_gaps_in_the_mask"),

    (7, "λ is missing", "ppo.py",
     "gamma * lam * next_advantage", "gamma * next_advantage", "test_gae_recursion"),
    (7, "γ is missing", "ppo.py",
     "delta = rewards[:, t] + gamma * next_value", "delta = rewards[:, t] + next_value", "test_gae_equals_its_definition_with_gaps_in_the_mask"),
    (7, "from left to right", "ppo.py",
     "for t in reversed(range(values.size(1))):", "for t in range(values.size(1)):", "test_gae_recursion"),
    (7, "no recursion at all", "ppo.py",
     "advantage = delta + gamma * lam * next_advantage", "advantage = delta",
     "test_probe_a_reward_three_tokens_later_reaches_the_token_that_earned_it"),
    (7, "returns are the advantages", "ppo.py",
     "return advantages, advantages + values", "return advantages, advantages", "test_returns_are_advantages_plus_values"),
    (7, "the critic learns advantages", "ppo.py",
     "return advantages, advantages + values", "return advantages, advantages", "test_probe_a_constant_reward_is_what_the_critic_learns"),

    (8, "the mask is multiplied", "ppo.py",
     "return torch.where(mask != 0, up(x), torch.zeros((), dtype=up(x).dtype, device=x.device))", "return up(x) * (mask != 0)",
     "test_no_masked_slot_reaches_any_result_or_gradient"),
    (8, "policy loss selects after exp", "ppo.py",
     "(shown(logprobs, mask) - shown(old_logprobs, mask)).clamp(max=60).exp()", "shown((up(logprobs) - up(old_logprobs)).exp(), mask)",
     "test_no_masked_slot_reaches_any_result_or_gradient"),
    (8, "value loss selects its result and not its inputs", "ppo.py",
     "values, old_values, returns = shown(values, mask), shown(old_values, mask), shown(returns, mask)",
     "values, old_values, returns = up(values), up(old_values), up(returns)",
     "test_no_masked_slot_reaches_any_result_or_gradient"),
    (8, "the mean multiplies", "ppo.py",
     "return shown(x, mask).sum() / (mask != 0).sum().clamp(min=1)", "return (up(x) * (mask != 0)).sum() / (mask != 0).sum().clamp(min=1)",
     "test_no_masked_slot_reaches_any_result_or_gradient"),
    (8, "values in GAE are not masked", "ppo.py",
     "rewards, values = shown(rewards, mask), shown(values, mask)\n", "rewards = shown(rewards, mask)\n",
     "test_no_masked_slot_reaches_any_result_or_gradient"),
    (8, "the KL is multiplied by the mask", "ppo.py",
     "rewards = -beta * (shown(logprobs, mask) - shown(ref_logprobs, mask))", "rewards = -beta * (up(logprobs) - up(ref_logprobs)) * (mask != 0)",
     "test_no_masked_slot_reaches_any_result_or_gradient"),
    (8, "a float mask is a weight", "ppo.py",
     "return shown(x, mask).sum() / (mask != 0).sum().clamp(min=1)", "return shown(x, mask).sum() / mask.sum().clamp(min=1)",
     "test_bool_integer_and_float_masks_agree"),
    (8, "in SFT", "sft.py",
     "    logits = torch.where((targets == -100)[..., None], torch.zeros_like(logits), logits)", "    logits = logits * (targets != -100)[..., None]",
     "test_sft_loss_ignores_what_is_masked"),
    (8, "empty slots of a ranking", "reward.py",
     "    scores = torch.where(ranks > 0, scores, torch.zeros_like(scores))\n", "", "test_an_empty_slot_reaches_neither_ranking_loss_nor_gradient"),
    (8, "prompts and PADs have log-probabilities", "ppo.py",
     "is None else mask[:, 1:] != 0", "is None else mask[:, 1:] >= 0", "test_logits_of_the_response_alone_give_the_logprobs_of_all"),

    (9, "SFT loss without its mask", "sft.py",
     "targets = torch.where(mask[:, 1:] != 0, tokens[:, 1:], -100)", "targets = tokens[:, 1:]", "test_sft_trains_no_prompt_token"),
    (9, "SFT mask begins one token early", "sft.py",
     "(columns >= starts[:, None]) & (columns < lengths[:, None])", "(columns >= starts[:, None] - 1) & (columns < lengths[:, None])",
     "test_the_mask_of_a_demonstration_is_its_response_and_eos"),
    (9, "SFT mask reaches a PAD", "sft.py",
     "(columns >= starts[:, None]) & (columns < lengths[:, None])", "(columns >= starts[:, None]) & (columns <= lengths[:, None])",
     "test_the_mask_of_a_demonstration_is_its_response_and_eos"),
    (9, "rollout mask begins one token early", "ppo.py",
     "mask = (columns >= starts[:, None]) &", "mask = (columns >= starts[:, None] - 1) &", "test_rollout_marks_the_response_and_nothing_else"),
    (9, "policy loss without its mask", "ppo.py",
     "    ratio = (shown(logprobs, mask)", "    mask = torch.ones_like(mask)\n    ratio = (shown(logprobs, mask)",
     "test_prompt_tokens_are_not_trained_on"),

    (10, "sign of the penalty", "ppo.py",
     "rewards = -beta * (shown", "rewards = beta * (shown", "test_kl_penalty_has_the_right_sign_and_only_on_the_response"),
    (10, "sign of the penalty, seen in what is learnt", "ppo.py",
     "rewards = -beta * (shown", "rewards = beta * (shown", "test_ppo_lands_on_the_closed_form"),
    (10, "no penalty, seen in the first gradient", "ppo.py",
     "rewards = -beta * (shown", "rewards = 0 * (shown", "test_first_gradient_is_that_of_the_objective"),
    (10, "KL from the reference to the policy", "ppo.py",
     "rewards = -beta * (shown(logprobs, mask) - shown(ref_logprobs, mask))",
     "gap = shown(ref_logprobs, mask) - shown(logprobs, mask)\n    rewards = -beta * gap.exp() * gap", "test_kl_is_from_the_policy_to_the_reference"),
    (10, "|log ratio|", "ppo.py",
     "rewards = -beta * (shown(logprobs, mask) - shown(ref_logprobs, mask))",
     "rewards = -beta * (shown(logprobs, mask) - shown(ref_logprobs, mask)).abs()",
     "test_kl_is_from_the_policy_to_the_reference"),
    (10, "sign of k3", "ppo.py",
     "shown(torch.expm1(-kl) + kl, mask)", "shown(torch.expm1(kl) - kl, mask)", "test_logged_kl_and_reward_follow_their_formulas"),

    (11, "through the rewards", "ppo.py",
     "@torch.no_grad()\ndef kl_rewards", "def kl_rewards", "test_no_gradient_flows_through_rewards_or_advantages"),
    (11, "through the advantages", "ppo.py",
     "@torch.no_grad()\ndef gae", "def gae", "test_no_gradient_flows_through_rewards_or_advantages"),
    (11, "through old log-probabilities and the reference", "ppo.py",
     "@torch.no_grad()\ndef in_parts", "def in_parts", "test_advantages_returns_and_old_logprobs_are_frozen_and_whitened_once"),

    (12, "the reference is the policy", "ppo.py",
     'reference = model_from(run.parents["sft"]).to(run.device).requires_grad_(False)', "reference = policy", "test_the_reference_stays_what_sft_made"),
    (12, "the reference is the average of the policy", "ppo.py",
     "forward_logprobs(reference, x,", "forward_logprobs(average, x,", "test_the_reference_stays_what_sft_made"),
    (12, "the critic is the reward model", "ppo.py",
     "critic = copy.deepcopy(reward_model).requires_grad_(True)", "critic = reward_model.requires_grad_(True)",
     "test_every_answer_is_scored_at_its_own_end_by_a_model_that_stays"),
    (12, "the reward model has SFT's layers", "model.py",
     "        model.load_state_dict(gpt.state_dict(), strict=False)", "        [setattr(model, n, m) for n, m in gpt.named_children()]",
     "test_reward_model_does_not_share_storage_with_the_policy"),
    (12, "the reward model has SFT's settings", "model.py",
     "model = cls(replace(gpt.config))", "model = cls(gpt.config)", "test_reward_model_has_its_own_settings"),

    (13, "scored at temperature 1", "ppo.py",
     "logits = up(logits[:, :-1]) / temperature\n", "logits = up(logits[:, :-1])\n", "test_the_policy_that_was_sampled_is_the_one_that_is_scored"),
    (13, "sampled at temperature 1", "ppo.py",
     "config.max_new_tokens, config.temperature, eos", "config.max_new_tokens, 1.0, eos", "test_the_policy_that_was_sampled_is_the_one_that_is_scored"),
    (13, "log-probabilities are divided", "ppo.py",
     "F.pad(chosen - logits.logsumexp(-1), (1, 0))", "F.pad(chosen - (logits * temperature).logsumexp(-1) / temperature, (1, 0))",
     "test_temperature_divides_logits_not_logprobs"),
    (13, "the reference is scored at temperature 1", "ppo.py",
     "forward_logprobs(reference, x, config.temperature,", "forward_logprobs(reference, x, 1.0,", "test_the_reference_stays_what_sft_made"),
    (13, "the update is at temperature 1", "ppo.py",
     "new = forward_logprobs(policy, x, config.temperature,", "new = forward_logprobs(policy, x, 1.0,", "test_first_minibatch_has_ratio_one"),
    (13, "sampling multiplies", "model.py",
     "    logits = logits / temperature\n", "    logits = logits * temperature\n", "test_sampling_follows_the_distribution_it_says"),

    (14, "top_k is taken", "ppo.py",
     "if config.top_k or config.top_p != 1.0:", "if config.top_p != 1.0:", "test_settings_that_can_not_work_are_refused_before_anything_starts"),
    (14, "top_p is taken", "ppo.py",
     "if config.top_k or config.top_p != 1.0:", "if config.top_k:", "test_settings_that_can_not_work_are_refused_before_anything_starts"),
    (14, "rollouts sample from the two likeliest", "ppo.py",
     "config.max_new_tokens, config.temperature, eos", "config.max_new_tokens, config.temperature, 2, eos",
     "test_the_policy_that_was_sampled_is_the_one_that_is_scored"),

    (15, "rows that are sampled later take the noise of the first", "model.py",
     "noise[at:at + most]", "noise[:most]", "test_answers_are_the_same_when_their_caches_do_not_fit_at_once"),
    (15, "PADs on the left are seen", "model.py",
     "(seen & (columns <= column))[:, None, None, :width]", "(seen.new_ones(seen.shape) & (columns <= column))[:, None, None, :width]",
     "test_cached_generation_equals_the_full_forward"),
    (15, "keys are written one column early", "model.py",
     "slice(column, column + 1), slice(t, t + 1)", "slice(column - 1, column), slice(t, t + 1)", "test_cached_generation_equals_the_full_forward"),
    (15, "keys stand at the other end when the cache grows", "model.py",
     "F.pad(k, (0, more))", "F.pad(k, (more, 0))", "test_cached_generation_equals_the_full_forward"),
    (15, "a recorded step takes the noise of the step before", "model.py",
     "else (column, t)", "else (column, t - 1)", "test_a_recorded_step_gives_the_tokens_of_one_that_is_not"),
    (15, "a recorded step does not hide the columns to come", "model.py",
     "(seen & (columns <= column))[:, None, None, :width]", "seen[:, None, None, :width]", "test_a_recorded_step_gives_the_tokens_of_one_that_is_not"),
    (15, "caches are not reordered when rows are dropped", "model.py",
     "[(k[going], v[going]) for k, v in caches]", "[(k[:left], v[:left]) for k, v in caches]",
     "test_rows_go_on_correctly_after_others_have_ended"),
    (15, "noise is not reordered when rows are dropped", "model.py",
     "seen[going], noise[going]", "seen[going], noise[:left]", "test_rows_go_on_correctly_after_others_have_ended"),
    (15, "padding is not reordered when rows are dropped", "model.py",
     "row[going], new[going], pads[going]", "row[going], new[going], pads[:left]",
     "test_rows_go_on_correctly_after_others_have_ended"),
    (15, "the fused kernel aligns first with first", "model.py",
     "if mask is None and q.size(-2) < k.size(-2):", "if False:", "test_fused_attention_equals_the_formula"),

    (16, "the variance divides by n − 1", "ppo.py",
     "variance = masked_mean((x - mean) ** 2, mask)", "variance = x[mask != 0].var() if (mask != 0).sum() > 1 else mean * 0",
     "test_whitening_ignores_pads_and_divides_by_n"),
    (16, "the mean counts PADs", "ppo.py",
     "x, mean = shown(x, mask), masked_mean(x, mask)", "x, mean = shown(x, mask), shown(x, mask).mean()",
     "test_whitening_ignores_pads_and_divides_by_n"),
    (16, "the variance counts PADs", "ppo.py",
     "variance = masked_mean((x - mean) ** 2, mask)", "variance = ((x - mean) ** 2).mean()", "test_whitening_ignores_pads_and_divides_by_n"),

    (17, "SFT's batches of short answers weigh as much as those of long ones", "sft.py",
     "(part / usual).backward()", "(part / mask.sum()).backward()", "test_every_token_of_the_demonstrations_weighs_the_same"),
    (17, "pretraining's microbatches weigh fully", "pretrain.py",
     "lm_loss(logits, part) * len(part) / config.batch", "lm_loss(logits, part)", "test_microbatches_change_nothing_in_the_stages_before"),
    (17, "SFT's microbatches are means of their own", "sft.py",
     "part = sft_loss(logits, t, m) * m.sum()", "part = sft_loss(logits, t, m) * mask.sum() * len(t) / len(tokens)", "test_microbatches_change_nothing_in_the_stages_before"),
    (17, "microbatches of pretraining text in SFT weigh fully", "sft.py",
     "lm_loss(logits, t) * len(t) / windows", "lm_loss(logits, t)", "test_microbatches_change_nothing_in_the_stages_before"),
    (17, "the reward model's microbatches weigh by their prompts", "reward.py",
     "share = better_pairs(ranks).sum() / pairs", "share = torch.tensor(len(part) / len(items))", "test_microbatches_change_nothing_in_the_stages_before"),
    (17, "microbatches of ptx weigh fully", "ppo.py",
     "lm_loss(forward(policy, part, run.cast), part) * len(part) / windows", "lm_loss(forward(policy, part, run.cast), part)", "test_microbatches_change_nothing"),
    (17, "a microbatch weighs by its answers", "ppo.py",
     "share = m.sum() / count", "share = torch.tensor(len(part) / len(rows))", "test_microbatches_change_nothing"),
    (17, "every microbatch of the critic weighs fully", "ppo.py",
     "(vl * share).backward()", "vl.backward()", "test_microbatches_change_nothing"),
    (17, "mean over each answer, then over answers", "ppo.py",
     "return shown(x, mask).sum() / (mask != 0).sum().clamp(min=1)", "return (shown(x, mask).sum(-1) / (mask != 0).sum(-1).clamp(min=1)).mean()",
     "test_microbatches_are_weighted_by_their_tokens"),

    (17, "a process's share of a batch weighs by its number", "reward.py",
     "pairs = all_reduce(torch.tensor(", "pairs = (torch.tensor(", "test_two_processes_do_what_one_does[reward]"),
    (17, "gradients of several processes are averaged again", "common.py",
     "p.grad = g.view_as(p)", "p.grad = g.view_as(p) / WORLD", "test_two_processes_do_what_one_does[pretrain]"),
    (17, "answers depend on the process that samples them", "ppo.py",
     "noise=shard(noise)", "noise=noise[:len(shard(prompts))]", "test_two_processes_do_what_one_does[ppo]"),
    (18, "per microbatch", "ppo.py",
     "pg = policy_loss(new, old, adv, m, config.clip)", "pg = policy_loss(new, old, masked_whiten(adv, m), m, config.clip)",
     "test_advantages_returns_and_old_logprobs_are_frozen_and_whitened_once"),
    (18, "per minibatch", "ppo.py",
     "                count = mask[rows].sum()\n",
     "                count = mask[rows].sum()\n                whitened = whitened.index_copy(0, rows, masked_whiten(advantages[rows], mask[rows]))\n",
     "test_advantages_returns_and_old_logprobs_are_frozen_and_whitened_once"),

    (19, "min instead of max", "ppo.py",
     "masked_mean(torch.maximum(-advantages * ratio", "masked_mean(torch.minimum(-advantages * ratio", "test_policy_clip_is_pessimistic"),
    (19, "only the clipped term", "ppo.py",
     "torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))", "-advantages * ratio.clamp(1 - clip, 1 + clip)",
     "test_policy_clip_is_pessimistic"),
    (19, "no clip", "ppo.py",
     "torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))", "-advantages * ratio", "test_policy_clip_is_pessimistic"),
    (19, "clipped above only", "ppo.py",
     "ratio.clamp(1 - clip, 1 + clip)", "ratio.clamp(max=1 + clip)", "test_policy_clip_is_pessimistic"),
    (19, "descends where it should ascend", "ppo.py",
     "torch.maximum(-advantages * ratio, -advantages * ratio.clamp", "torch.maximum(advantages * ratio, advantages * ratio.clamp",
     "test_gradient_of_the_first_step_is_that_of_reinforce"),

    (20, "min instead of max", "ppo.py",
     "masked_mean(torch.maximum((values - returns)", "masked_mean(torch.minimum((values - returns)", "test_value_clip_takes_the_larger_loss"),
    (20, "the ½ is missing", "ppo.py",
     "return 0.5 * masked_mean", "return masked_mean", "test_value_clip_takes_the_larger_loss"),
    (20, "clipped around 0", "ppo.py",
     "clipped = old_values + (values - old_values).clamp(-clip, clip)", "clipped = values.clamp(-clip, clip)", "test_value_clip_takes_the_larger_loss"),
    (20, "against recomputed values", "ppo.py",
     "vl = value_loss(v, old_v, ret, m, config.value_clip)", "vl = value_loss(v, v.detach(), ret, m, config.value_clip)",
     "test_advantages_returns_and_old_logprobs_are_frozen_and_whitened_once"),

    (21, "returns of whitened advantages", "ppo.py",
     "whitened = masked_whiten(advantages, mask)\n", "whitened = masked_whiten(advantages, mask)\n        returns = whitened + values\n",
     "test_advantages_returns_and_old_logprobs_are_frozen_and_whitened_once"),
    (21, "advantages of the moving critic", "ppo.py",
     "            order = torch.randperm(config.episodes, generator=rng)\n",
     "            order = torch.randperm(config.episodes, generator=rng)\n"
     "            values = in_parts(lambda x: forward_values(critic, x, run.cast), lengths, size, tokens)\n"
     "            advantages, returns = gae(rewards, values, mask, config.gamma, config.lam)\n",
     "test_advantages_returns_and_old_logprobs_are_frozen_and_whitened_once"),
    (21, "old log-probabilities of the moving policy", "ppo.py",
     "pg = policy_loss(new, old, adv, m, config.clip)", "pg = policy_loss(new, new.detach(), adv, m, config.clip)",
     "test_advantages_returns_and_old_logprobs_are_frozen_and_whitened_once"),

    (22, "responses are encoded without EOS", "data/__init__.py",
     "return [*self.encode(text), self.eos]", "return [*self.encode(text)]", "test_a_response_ends_in_eos_and_pad_is_another_token"),
    (22, "SFT mask ends before EOS", "sft.py",
     "(columns >= starts[:, None]) & (columns < lengths[:, None])", "(columns >= starts[:, None]) & (columns < lengths[:, None] - 1)",
     "test_the_mask_of_a_demonstration_is_its_response_and_eos"),
    (22, "SFT loss leaves the last target out", "sft.py",
     "    total = F.cross_entropy(",
     "    targets = targets.masked_fill(tokens[:, 1:] == tokens[:, 1:].amax(1, keepdim=True), -100)\n    total = F.cross_entropy(",
     "test_sft_teaches_when_to_stop"),
    (22, "rows go on after EOS", "model.py",
     "token.where(going, -1)", "token", "test_an_answer_ends_with_its_first_eos"),
    (22, "rollout mask ends before EOS", "ppo.py",
     "mask = (columns >= starts[:, None]) & (columns < lengths[:, None])\n", "mask = (columns >= starts[:, None]) & (columns < lengths[:, None] - 1)\n",
     "test_rollout_marks_the_response_and_nothing_else"),

    (23, "padded rows have logits", "model.py",
     "self.wte.weight)[..., :self.config.vocab_size]", "self.wte.weight)", "test_ids_beyond_the_vocabulary_have_no_logits_and_are_never_sampled"),
    (23, "padded rows are sampled", "model.py",
     "return sample(self.unembed(x[:, -1]),", "return sample(F.linear(x[:, -1], self.wte.weight),",
     "test_ids_beyond_the_vocabulary_have_no_logits_and_are_never_sampled"),

    (24, "the same few replies always lose", "comparisons.py",
     "[given[i - n] for n in range(1, config.others + 1)]", "[given[n] for n in range(1, config.others + 1)]", "test_replies_to_other_prompts_lose_and_each_one_wins_once"),
    (24, "the loss is swapped", "reward.py",
     "F.softplus(-margin)", "F.softplus(margin)", "test_winner_and_loser_are_not_swapped"),
    (24, "rank 1 is the worst", "reward.py",
     "(ranks[:, :, None] < ranks[:, None, :])", "(ranks[:, :, None] > ranks[:, None, :])", "test_winner_and_loser_are_not_swapped"),
    (24, "the rejected answer is the chosen one", "data/__init__.py",
     'return [row["chosen"], row["rejected"]], [1, 2]', 'return [row["chosen"], row["rejected"]], [2, 1]',
     "test_chosen_and_rejected_are_two_ranked_answers"),
    (24, "divided by C(K, 2) twice", "reward.py",
     "return losses.sum() / better.sum().clamp(min=1)",
     "return losses.sum() / better.sum().clamp(min=1) / (scores.size(1) * (scores.size(1) - 1) // 2)",
     "test_ranking_loss_of_equal_scores_is_ln_2"),
    (24, "averaged for each prompt, then over prompts", "reward.py",
     "return losses.sum() / better.sum().clamp(min=1)", "return (losses.sum((1, 2)) / better.sum((1, 2)).clamp(min=1)).mean()",
     "test_pairs_are_averaged_over_the_batch_and_not_twice"),
    (24, "ties are pairs", "reward.py",
     "(ranks[:, :, None] < ranks[:, None, :])", "(ranks[:, :, None] <= ranks[:, None, :])", "test_ties_make_no_pair"),
    (24, "equal answers are kept", "comparisons.py",
     "first.setdefault(r, i)", "first.setdefault(i, i)", "test_an_answer_given_twice_is_kept_once"),
    (24, "prompts whose answers all tie are kept", "comparisons.py",
     "        elif not pairs:\n", "        elif pairs < 0:\n", "test_comparisons_that_teach_nothing_are_dropped_and_counted"),
    (24, "log σ underflows", "reward.py",
     "F.softplus(-margin)", "-torch.sigmoid(margin).log()", "test_a_sure_and_wrong_reward_model_does_not_overflow"),
    (24, "no pair is 0 / 0", "reward.py",
     "return losses.sum() / better.sum().clamp(min=1)", "return losses.sum() / better.sum()", "test_no_pair_gives_zero_and_not_nan"),

    (25, "clipped after the step", "common.py",
     "    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()",
     "    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()",
     "test_gradients_are_clipped_before_the_step_and_cleared_after_it"),
    (25, "clipped by value", "common.py",
     "    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip).item()",
     "    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()\n    torch.nn.utils.clip_grad_value_(model.parameters(), clip)",
     "test_gradients_are_clipped_before_the_step_and_cleared_after_it"),
    (25, "one norm over policy and critic", "ppo.py",
     "                update(policy, optimizer, config.lr * warm)\n",
     "                torch.nn.utils.clip_grad_norm_([*policy.parameters(), *critic.parameters()], 1.0)\n"
     "                update(policy, optimizer, config.lr * warm)\n",
     "test_a_steep_critic_does_not_slow_the_policy"),
    (25, "gradients are not cleared", "common.py",
     "    optimizer.zero_grad(set_to_none=True)\n", "", "test_gradients_are_clipped_before_the_step_and_cleared_after_it"),
    (25, "NaN is stepped", "common.py",
     "    if not math.isfinite(norm):", "    if norm < 0:", "test_a_gradient_of_nan_is_not_stepped"),

    (26, "the error is not clipped", "ppo.py",
     "error = min(max(kl / target - 1, -0.2), 0.2)", "error = kl / target - 1", "test_adaptive_kl_controller"),
    (26, "sign", "ppo.py",
     "beta * (1 + error * episodes / horizon)", "beta * (1 - error * episodes / horizon)", "test_adaptive_kl_controller"),
    (26, "episodes do not count", "ppo.py",
     "beta * (1 + error * episodes / horizon)", "beta * (1 + error)", "test_adaptive_kl_controller"),
    (26, "PPO gives it k3", "ppo.py",
     "adapt_beta(beta, k1,", "adapt_beta(beta, k3,", "test_logged_kl_and_reward_follow_their_formulas"),
    (26, "PPO does not use what it says", "ppo.py",
     'beta = state["beta"]\n', "beta = config.beta\n", "test_logged_kl_and_reward_follow_their_formulas"),

    (27, "the reward model", "ppo.py",
     "reward_model = model_from(run.parents[reward[0]], ScalarGPT).to(run.device)",
     "reward_model = model_from(run.parents[reward[0]], ScalarGPT).to(run.device).train()",
     "test_no_network_is_in_train_mode_during_ppo"),
    (27, "the reference", "ppo.py",
     'reference = model_from(run.parents["sft"]).to(run.device).requires_grad_(False)', 'reference = model_from(run.parents["sft"]).to(run.device).requires_grad_(False).train()',
     "test_no_network_is_in_train_mode_during_ppo"),
    (27, "the policy, in its update", "ppo.py",
     "        # 5. update\n", "        policy.train()\n", "test_no_network_is_in_train_mode_during_ppo"),
    (27, "every network that has sampled", "model.py",
     "self.train(was_training)", "self.train()", "test_no_network_is_in_train_mode_during_ppo"),
    (27, "while sampling", "model.py",
     "        self.eval()\n        try:\n", "        try:\n",
     "test_generation_runs_without_dropout_and_leaves_the_mode_as_it_was"),

    (28, "the KL part has the wrong sign", "ppo.py",
     '"objective/non_score_reward": -beta * k1', '"objective/non_score_reward": beta * k1', "test_logged_kl_and_reward_follow_their_formulas"),
    (28, "the score is logged before the EOS rule", "ppo.py",
     '"objective/scores": scores.mean().item()', '"objective/scores": outputs.gather(1, lengths[:, None] - 1).mean().item()',
     "test_logged_kl_and_reward_follow_their_formulas"),
    (28, "KL per token", "ppo.py",
     "k1, k3 = kl.sum(1).mean().item()", "k1, k3 = masked_mean(kl, mask).item()", "test_logged_kl_and_reward_follow_their_formulas"),
    (28, "negative entropy", "ppo.py",
     '"objective/entropy": -shown', '"objective/entropy": shown', "test_logged_kl_and_reward_follow_their_formulas"),
    (28, "clipped tokens are counted, not averaged", "ppo.py",
     "masked_mean(((v - old_v).abs() > config.value_clip).float(), m)", "shown(((v - old_v).abs() >= 0).float(), m).sum()",
     "test_logged_kl_and_reward_follow_their_formulas"),

    (29, "γ is forgotten", "ppo.py",
     "(config.ptx_coef * ptx).backward()", "ptx.backward()", "test_gamma_multiplies_the_pretraining_gradient_and_nothing_else"),
    (29, "γ twice", "ppo.py",
     "(config.ptx_coef * ptx).backward()", "(config.ptx_coef ** 2 * ptx).backward()",
     "test_gamma_multiplies_the_pretraining_gradient_and_nothing_else"),
    (29, "a step of its own", "ppo.py",
     "                if config.ptx_coef:  ", "                update(policy, optimizer, config.lr * warm)\n                if config.ptx_coef:  ",
     "test_gamma_multiplies_the_pretraining_gradient_and_nothing_else"),
    (29, "computed although γ is 0", "ppo.py",
     "                if config.ptx_coef:  ", "                if True:  ", "test_gamma_zero_leaves_pretraining_text_out"),

    (30, "optimisers start anew", "common.py",
     "for name, part in parts.items():\n                part.update",
     "for name, part in parts.items():\n                if \"optimizer\" in name:\n                    continue\n                part.update",
     "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not"),
    (30, "β starts anew", "ppo.py",
     "critic_optimizer=critic_optimizer, state=state)\n\n    run.finish", "critic_optimizer=critic_optimizer, state={})\n\n    run.finish",
     "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[ppo]"),
    (30, "the average starts anew", "ppo.py",
     "first = run.resume(policy=policy, critic=critic, average=average,", "first = run.resume(policy=policy, critic=critic,",
     "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[ppo]"),
    (30, "the critic starts anew", "ppo.py",
     "first = run.resume(policy=policy, critic=critic,", "first = run.resume(policy=policy,",
     "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[ppo]"),
    (30, "only the critic's optimiser starts anew", "ppo.py",
     "optimizer=optimizer, critic_optimizer=critic_optimizer, state=state)\n    print", "optimizer=optimizer, state=state)\n    print",
     "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[ppo]"),
    (30, "rollouts from the global generator", "ppo.py",
     'rng = generator(config.seed, in_round("rollout", config.round), iteration)', "rng = torch.default_generator",
     "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[ppo]"),
    (30, "SFT's order from the global generator", "sft.py",
     'generator(config.seed, "epoch", epoch)', "None", "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[sft]"),
    (30, "reward's order from the global generator", "reward.py",
     'generator(config.seed, "epoch", epoch)', "None", "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[reward]"),
    (30, "dropout from the global generator", "pretrain.py",
     "        torch.manual_seed(config.seed * 1_000_003 + step)     # dropout\n", "",
     "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[pretrain]"),
    (30, "a step is left out", "pretrain.py",
     "run.checkpoint(step + 1,", "run.checkpoint(step + 2,", "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[pretrain]"),

    ("EMA", "decay and 1 − decay swapped", "ppo.py",
     "a.data.lerp_(p.data, 1 - decay)", "a.data.lerp_(p.data, decay)", "test_ema_follows_its_formula_and_not_the_raw_weights"),
    ("EMA", "the average is the policy", "ppo.py",
     "average = copy.deepcopy(policy).requires_grad_(False)", "average = policy", "test_rollouts_use_the_raw_weights_and_evaluation_their_average"),
    ("EMA", "rollouts sample from it", "ppo.py",
     "has_eos = rollout(policy, [", "has_eos = rollout(average, [", "test_rollouts_use_the_raw_weights_and_evaluation_their_average"),
    ("EMA", "ppo.pt holds the raw weights", "ppo.py",
     "run.finish(average,", "run.finish(policy,", "test_rollouts_use_the_raw_weights_and_evaluation_their_average"),
    ("EMA", "raw weights are evaluated", "ppo.py",
     "heldout_metrics(average,", "heldout_metrics(policy,", "test_rollouts_use_the_raw_weights_and_evaluation_their_average"),
    ("EMA", "once an iteration", "ppo.py",
     "                ema_update(average, policy, config.ema)\n                stats.append(step_stats)\n",
     "                stats.append(step_stats)\n        ema_update(average, policy, config.ema)\n",
     "test_rollouts_use_the_raw_weights_and_evaluation_their_average"),

    ("EOS rule", "raises bad scores", "ppo.py",
     "scores.clamp(max=mean - std)", "torch.full_like(scores, mean - std)", "test_an_answer_without_eos_is_worth_less_than_average"),
    ("EOS rule", "the wrong way round", "ppo.py",
     "torch.where(has_eos, scores, scores.clamp", "torch.where(~has_eos, scores, scores.clamp",
     "test_an_answer_without_eos_is_worth_less_than_average"),
    ("EOS rule", "not applied", "ppo.py",
     "        scores = eos_rule(scores, has_eos, rm[\"score_mean\"], rm[\"score_std\"])\n", "",
     "test_every_answer_is_scored_at_its_own_end_by_a_model_that_stays"),
    ("EOS rule", "a cut answer is compared with EOS", "comparisons.py",
     "[:None if eos[i] else -1]", "", "test_an_answer_that_was_cut_off_is_scored_without_eos"),

    ("halves", "they overlap", "data/__init__.py",
     "half_of(r) == (0 if final else 1)]", "half_of(r) <= (0 if final else 1)]", "test_held_out_halves_have_no_prompt_in_common"),
    ("halves", "by row and not by prompt", "data/__init__.py",
     'json.dumps(row["prompt"]).encode()', "json.dumps(row).encode()", "test_held_out_halves_have_no_prompt_in_common"),
    ("halves", "another in every process", "data/__init__.py",
     'int(hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest(), 16) % 2', 'hash(json.dumps(row["prompt"])) % 2',
     "test_a_side_and_a_half_are_the_same_in_every_process"),
    ("halves", "curves are of the final half", "ppo.py",
     'heldout = read_heldout(prompts_path, ["prompt"])', 'heldout = read_heldout(prompts_path, ["prompt"], final=True)', "test_what_is_looked_at_on_the_way_is_not_in_the_final_table"),
    ("halves", "accuracy is of both", "comparisons.py",
     "else read_heldout(given_in, fields)", "else read_jsonl(given_in, fields, split)", "test_what_is_looked_at_on_the_way_is_not_in_the_final_table"),
    ("halves", "the table is of the half looked at", "evaluate.py",
     'read_heldout(path, ["prompt"], final=True)', 'read_heldout(path, ["prompt"])', "test_what_is_looked_at_on_the_way_is_not_in_the_final_table"),
    ("halves", "both reward models learn from the same", "comparisons.py",
     "if fold and half_of(row) != fold - 1:", "if fold and half_of(row) != 0:", "test_the_two_halves_of_the_comparisons_have_no_prompt_in_common"),
    ("halves", "PPO's reward model learns from all", "comparisons.py",
     '"auto": 0 if judge else 1', '"auto": 0', "test_the_reward_model_that_evaluates_has_comparisons_to_itself"),

    ("splits", "by chance", "data/village/prepare.py",
     'int(hashlib.sha256(text.encode()).hexdigest(), 16) % 6 == 0', "random.randrange(6) == 0", "test_no_prompt_is_on_both_sides"),
    ("splits", "another in every process", "data/village/prepare.py",
     'int(hashlib.sha256(text.encode()).hexdigest(), 16) % 6 == 0', "hash(text) % 6 == 0", "test_a_side_and_a_half_are_the_same_in_every_process"),
    ("splits", "pretraining text asks what is held out", "data/village/prepare.py",
     'text, s = ask_of("train", kind, rng)\n        while split_of(text.split(" | ")[0]) != "train":        # a chat may begin with another kind\'s prompt\n'
     '            text, s = ask_of("train", kind, rng)\n', "text, s = ask(kind, rng)\n", "test_pretraining_text_holds_no_held_out_prompt"),

    ("text", "a typed special token is one", "data/__init__.py",
     "self.encoding.encode_ordinary(self.prefix + text)", 'self.encoding.encode(self.prefix + text, allowed_special="all")',
     "test_special_tokens_in_a_text_stay_text"),
    ("text", "turns without EOS", "data/__init__.py",
     'ids += [*self.encode(turn["content"]), self.eos]', 'ids += self.encode(turn["content"])', "test_several_turns_are_separated_by_eos"),
    ("text", "PAD is EOS", "data/__init__.py",
     '("<|user|>", "<|assistant|>", "<|endoftext|>", "<|pad|>"))', '("<|user|>", "<|assistant|>", "<|endoftext|>", "<|endoftext|>"))',
     "test_a_response_ends_in_eos_and_pad_is_another_token"),
    ("text", "rows are padded on the left", "common.py",
     "tokens[i, :len(r)] = torch.tensor(r)", "tokens[i, tokens.size(1) - len(r):] = torch.tensor(r)", "test_rows_are_padded_on_the_right"),
    ("text", "windows begin inside documents", "common.py",
     "(tokens[:-1] == eos).nonzero()[0] + 1", "(tokens[:-1] == eos).nonzero()[0]", "test_windows_of_text_begin_where_documents_do"),

    ("files", "written in place", "data/__init__.py",
     'temporary = f"{path}.{os.getpid()}.tmp"', "temporary = path", "test_a_writer_that_fails_leaves_the_old_file"),
    ("files", "a checkpoint may run code", "common.py",
     "weights_only=True", "weights_only=False", "test_a_checkpoint_runs_no_code_when_it_is_loaded"),
    ("files", "a wrong bit is not noticed", "common.py",
     "if zipfile.ZipFile(path).testzip():", "if False:", "test_a_checkpoint_with_a_wrong_bit_is_refused"),
    ("files", "another stage's file is this one, finished", "common.py",
     "checkpoint = load(self.path, self.name)", "checkpoint = load(self.path)", "test_another_stages_file_is_not_this_stage_finished"),
    ("files", "the first save comes after a minute", "common.py",
     "time.time(), 0.0, 0.0 ", "time.time(), 0.0, time.time() ", "test_a_fresh_run_that_was_killed_is_not_taken_for_finished"),
    ("files", "what is no line of the log ends the run", "common.py",
     "contextlib.suppress(ValueError, TypeError, KeyError)", "contextlib.suppress(ValueError)", "test_what_is_no_line_of_ours_is_left_out_of_the_log"),
    ("files", "a resumed log keeps lines that come again", "common.py",
     'if x["step"] < step] if step', 'if x["step"] <= step - 2] if step', "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[pretrain]"),

    ("GPT-2", "another GELU", "model.py",
     'approximate="tanh"', 'approximate="none"', "test_gpt2_weights_give_the_logits_of_transformers"),
    ("GPT-2", "matrices not transposed", "model.py",
     'not ours.startswith("ln")', 'ours == "qkv" or ours == "mlp_fc" or ours == "mlp_proj"', "test_gpt2_weights_give_the_logits_of_transformers"),
    ("GPT-2", "attention not scaled", "model.py",
     "is_causal=mask is None)", "is_causal=mask is None, scale=1.0)", "test_fused_attention_equals_the_formula"),
    ("GPT-2", "tokens see the future", "model.py",
     "is_causal=mask is None)", "is_causal=False)", "test_no_token_sees_the_future"),

    ("sampling", "a token of probability 0 is drawn", "model.py",
     "torch.searchsorted(cdf, target, right=True)", "torch.searchsorted(cdf, target)", "test_a_token_of_probability_zero_is_never_sampled"),
    ("precision", "the held-out loss keeps its graph", "common.py",
     "@torch.no_grad()\ndef text_loss", "def text_loss", "test_a_large_vocabulary_is_measured_a_few_rows_at_a_time"),
    ("precision", "the held-out loss takes all windows at once", "common.py",
     "at.split(at_once(32, block, model.config))", "at.split(32)", "test_a_large_vocabulary_is_measured_a_few_rows_at_a_time"),
    ("sampling", "a row's noise depends on how many there are", "model.py",
     "return noise.to(self.wte.weight.device)", "return noise.flatten().view(max_new_tokens, len(prompts)).T.to(self.wte.weight.device)",
     "test_more_prompts_leave_the_first_answers_as_they_were"),
    ("sampling", "copies of a prompt go on from another prompt", "model.py",
     "x, pads, seen, caches = x[which], pads[which], seen[which], [(k[which], v[which])", "x, pads, seen, caches = x[which], pads[which], seen[which], [(k[which], v[which.sort()[0]])",
     "test_a_prompt_given_several_times_is_answered_as_if_each_were_alone"),
    ("sampling", "top-p drops the token that crosses p", "model.py",
     "probs.cumsum(-1) - probs >= top_p", "probs.cumsum(-1) >= top_p", "test_sampling_follows_the_distribution_it_says"),

    ("reward model", "the head starts at random", "model.py",
     "        nn.init.zeros_(self.head.weight)        # so the first ranking loss is ln 2 exactly\n", "", "test_head_starts_at_zero"),
    ("reward model", "the shift is lost", "model.py",
     'self.register_buffer("shift", torch.zeros(()))', 'self.register_buffer("shift", torch.zeros(()), persistent=False)',
     "test_shift_is_subtracted_from_every_score"),
    ("reward model", "scores in bf16", "model.py",
     "enabled=False):      # scores", "enabled=True):      # scores", "test_scores_keep_float32_precision_under_bf16_autocast"),

    ("precision", "log-probabilities in bf16", "ppo.py",
     "logits = up(logits[:, :-1]) / temperature", "logits = logits[:, :-1] / temperature", "test_logprobs_are_computed_in_float32_under_bf16"),
    ("precision", "the ranking loss in bf16", "reward.py",
     "    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores\n", "", "test_ranking_loss_keeps_its_precision"),

    ("optimiser", "everything decays", "common.py",
     'if p.dim() < 2], "weight_decay": 0.0}', 'if p.dim() < 2], "weight_decay": weight_decay}', "test_weight_decay_is_on_matrices_only"),
    ("optimiser", "the first step of the warm-up is 0", "common.py",
     "return (step + 1) / warmup", "return step / warmup", "test_learning_rate_falls_along_a_cosine_to_a_tenth"),

    ("rounds", "the reference is the policy of the round before", "ppo.py",
     'reference = model_from(run.parents["sft"])', "reference = model_from(run.parents[policy_before(config.round)])", "test_round_two_goes_on_from_round_one_and_is_held_to_sft"),
    ("rounds", "the policy begins at SFT again", "ppo.py",
     "policy = model_from(run.parents[policy_before(config.round)])", 'policy = model_from(run.parents["sft"])', "test_round_two_goes_on_from_round_one_and_is_held_to_sft"),
    ("rounds", "SFT answers again", "comparisons.py",
     "model = model_from(run.parents[policy])", 'policy = "sft"\n    of = run.parents[policy]["hash"]\n    model = model_from(run.parents[policy])',
     "test_round_two_asks_the_newest_policy_and_keeps_the_old_comparisons"),
    ("rounds", "the labelers' noise is the first round's", "comparisons.py",
     'random.Random(in_round(f"{config.seed} {split} {i}", n))', 'random.Random(f"{config.seed} {split} {i}")', "test_round_two_asks_the_newest_policy_and_keeps_the_old_comparisons"),
    ("rounds", "the old comparisons are forgotten", "reward.py",
     "for n in range(1, config.round + 1)]", "for n in range(config.round, config.round + 1)]", "test_round_two_asks_the_newest_policy_and_keeps_the_old_comparisons"),
    ("rounds", "the new comparisons take the place of the old", "comparisons.py",
     'os.path.join(config.out, in_round("comparisons", n) + ".jsonl")', 'os.path.join(config.out, "comparisons.jsonl")', "test_round_two_leaves_round_one_as_it_was"),

    ("function", "scaled anew by every rollout", "ppo.py",
     'state["scale"] = state["scale"] or first_scale', 'state["scale"] = first_scale', "test_a_function_takes_the_reward_models_place"),
    ("function", "not scaled", "ppo.py",
     'scores = (scores - state["scale"][0]) / state["scale"][1]', "pass", "test_a_function_takes_the_reward_models_place"),
    ("function", "the scale is not saved", "ppo.py",
     'state["scale"] = state["scale"] or first_scale(scores, config.reward)\n            scores = (scores - state["scale"][0]) / state["scale"][1]',
     'scale = first_scale(scores, config.reward) if iteration == first else scale\n            scores = (scores - scale[0]) / scale[1]',
     "test_a_run_that_is_stopped_after_every_step_ends_as_one_that_is_not[ppo with a function]"),
    ("function", "answers of other prompts", "ppo.py",
     "function_scores(function, [asked[i] for i in chosen],", "function_scores(function, asked[:len(chosen)],", "test_a_function_takes_the_reward_models_place"),
    ("function", "NaN passes", "data/__init__.py",
     "or not math.isfinite(value):", "or math.isinf(value):", "test_a_reward_that_is_no_finite_number_is_refused[nan]"),

    ("best of n", "the worst is taken", "evaluate.py",
     ".view(-1, n).argmax(1)", ".view(-1, n).argmin(1)", "test_the_best_of_n_is_the_one_that_scores_highest"),
    ("best of n", "one that does not end", "evaluate.py",
     "eos_rule(scores, ended, mean, std).view", "scores.view", "test_the_best_of_n_is_the_one_that_scores_highest"),
    ("best of n", "read in the last column", "evaluate.py",
     ".gather(1, lengths[:, None] - 1).squeeze(1).cpu()", "[:, -1].cpu()", "test_a_reward_model_scores_answers_at_their_own_ends"),
    ("best of n", "its KL is ln n", "evaluate.py",
     "math.log(config.best_of) - (config.best_of - 1) / config.best_of", "math.log(config.best_of)", "test_every_stage_can_be_talked_to_and_compared"),
]

# what a plant that does not run raises, as against one that runs wrongly
BROKEN = {"NameError", "UnboundLocalError", "AttributeError", "TypeError", "ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError"}


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


@functools.cache
def files_of_tests():
    """{name of a test: its file under tests/}."""
    names = [f for f in sorted(os.listdir(HERE)) if re.fullmatch(r"test_\w+\.py", f)]
    return {test: f for f in names for test in re.findall(r"^def (test_\w+)", read(os.path.join(HERE, f)), re.M)}


def node(test):
    """A test's name as pytest takes it."""
    return f"{files_of_tests()[test.split('[')[0]]}::{test}"


def planted(plant):
    """The file's content with the bug in it. Raises ValueError if that can't be done."""
    bug, what, file, old, new, test = plant
    where = f"{bug}, {what} ({file})"
    if bug not in BUGS or test.split("[")[0] not in files_of_tests():
        raise ValueError(f"{where}: there is no such bug or no {test}")
    source = read(os.path.join(ROOT, file))
    if source.count(old) != 1:
        raise ValueError(f"{where}: the text to replace is there {source.count(old)} times, not once: {old.strip()}")
    source = source.replace(old, new)
    try:
        ast.parse(source)
    except SyntaxError as e:
        raise ValueError(f"{where}: what comes out is not Python: {e}") from None
    return source


class Watch:
    """A pytest plugin that remembers what was raised, and where: in a fixture (setup) or in the test itself (call)."""

    def __init__(self):
        self.raised = []

    def pytest_runtest_makereport(self, item, call):
        if call.excinfo:
            self.raised.append((item.name, call.when, call.excinfo.typename))


def start(folder, nodes):
    """Fork; the child runs the tests in folder/copy, a copy of the project. → its process id"""
    if pid := os.fork():
        return pid
    log = os.open(os.path.join(folder, "log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.setitimer(signal.ITIMER_PROF, 300)       # of CPU time: a plant may loop for ever
    import pytest
    os.chdir(os.path.join(folder, "copy"))
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) not in (HERE, ROOT)]
    watch = Watch()
    arguments = ["-q", "-x", "-W", "ignore", "-p", "no:cacheprovider", "--rootdir=.", f"--basetemp={folder}/tmp", *(f"tests/{n}" for n in nodes)]
    code = pytest.main(arguments, plugins=[watch])
    with open(os.path.join(folder, "result"), "w") as f:
        json.dump([int(code), watch.raised], f)
    sys.stdout.flush()
    os._exit(0)


def verdict(folder):
    """What the child found → "red", "MISSED" or what went wrong."""
    try:
        code, raised = json.loads(read(os.path.join(folder, "result")))
    except FileNotFoundError:
        return "ERROR: the process died, or took more than 300 s of CPU time"
    if code == 0:
        return "MISSED"
    if code == 1 and raised and all(when == "call" and kind not in BROKEN for _, when, kind in raised):
        return "red"
    return f"ERROR: pytest exits with {code}, raised {raised}"


def table():
    rows = ["| | bug | test that catches it | plants |", "|---|---|---|---|"]
    for bug, what in BUGS.items():
        plants = [p for p in PLANTS if p[0] == bug]
        tests = dict.fromkeys(p[5].split("[")[0] for p in plants)
        rows.append(f"| {bug} | {what} | {', '.join(f'`{t}`' for t in tests)} | {len(plants)} |")
    return "\n".join(rows)


def main():
    flags, only = [a for a in sys.argv[1:] if a.startswith("-")], [a for a in sys.argv[1:] if not a.startswith("-")]
    if "-h" in flags or "--help" in flags:
        return print(__doc__.strip())
    if "--table" in flags:
        return print(table())
    if unknown := set(only) - {str(bug) for bug in BUGS}:
        sys.exit(f"no bug {', '.join(sorted(unknown))}; there are {', '.join(map(str, BUGS))}")
    plants = [p for p in PLANTS if not only or str(p[0]) in only]
    if "--list" in flags:
        return print("\n".join(f"{bug}\t{what}\t{file}\t{test}" for bug, what, file, _, _, test in plants))
    jobs = [re.fullmatch(r"--jobs=([1-9]\d*)", f) for f in flags]
    if not all(jobs):
        sys.exit(f"unknown flag among {' '.join(flags)} (--help lists them)")
    jobs = int(jobs[-1][1]) if jobs else 2
    try:
        sources = [planted(p) for p in plants]
    except ValueError as e:
        print(f"ERROR: {e}", file=sys.stderr)
        sys.exit(2)

    # what every child would import; nothing of the project, which has to come from the copy
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    import hypothesis, numpy, pytest, tiktoken, torch._dynamo, tqdm     # noqa: E401, F401
    torch.set_num_threads(1)
    if any("transformers" in p[5] for p in plants):
        from transformers import GPT2LMHeadModel    # noqa: F401

    found = {"red": 0, "MISSED": 0, "ERROR": 0}
    with tempfile.TemporaryDirectory() as home:
        clean = os.path.join(home, "clean")
        shutil.copytree(ROOT, f"{clean}/copy", ignore=shutil.ignore_patterns(".*", "__pycache__", "out", "experiments", "*.bin", "*.jsonl", "*.tmp"))
        os.waitpid(start(clean, sorted({node(p[5]) for p in plants})), 0)
        if verdict(clean) != "MISSED":
            print(f"ERROR: a test is red without a plant\n{read(os.path.join(clean, 'log'))}", file=sys.stderr)
            sys.exit(2)
        waiting, running = list(zip(plants, sources)), {}
        while waiting or running:
            while waiting and len(running) < jobs:
                plant, source = waiting.pop(0)
                folder = tempfile.mkdtemp(dir=home)
                shutil.copytree(f"{clean}/copy", f"{folder}/copy")      # with what Python has compiled by now
                with open(f"{folder}/copy/{plant[2]}", "w", encoding="utf-8") as f:
                    f.write(source)
                running[start(folder, [node(plant[5])])] = plant, folder
            pid, _ = os.wait()
            (bug, what, _, _, _, test), folder = running.pop(pid)
            result = verdict(folder)
            found[result.split(":")[0]] += 1
            print(f"{bug}: {what}\t{node(test)}\t{result}", flush=True)
            if result.startswith("ERROR"):
                print(read(os.path.join(folder, "log"))[-2000:], file=sys.stderr)
            shutil.rmtree(folder)
    print(f"{len(plants)} plants: " + ", ".join(f"{n} {what}" for what, n in found.items()), file=sys.stderr)
    sys.exit(2 if found["ERROR"] else 1 if found["MISSED"] else 0)


if __name__ == "__main__":
    main()
