"""Silent bugs, as exercises: each is a small slip in a script that runs, and often even learns.

    python tests/bugs.py 7               write bug_07.py into this folder; say nothing
    python tests/bugs.py --list          the numbers, with the script of each
    python tests/bugs.py --solution 7    what is wrong, and which test says so

A student finds the slip with the slides, with the metrics, or with
`python -m pytest --script bug_07.py`. The numbers are in no order of difficulty.
"""
import argparse
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Bug(NamedTuple):
    script: str
    right: str  # stands once in the script
    wrong: str  # in its place
    hint: str  # for the lecturer
    test: str  # a test that fails


BUGS = [
    Bug("ppo_discrete", "advantages[t] += decay[t] * advantages[t + 1]",
        "advantages[t] += decay[t + 1] * advantages[t + 1]",
        "GAE's recursion is cut a step late: done[t+1] for a rollout that stores done[t] after the"
        " step. Each line looks like the slide's; the two belong to different conventions.",
        "test_advantages.py::test_batch_equals_its_episodes"),
    Bug("ppo_discrete", "gamma * next_values * ~terminated.bool() - values",
        "gamma * next_values * ~done.bool() - values",
        "A time limit is taken for a termination: V(s') is cut where the task would have gone on.",
        "test_advantages.py::test_time_limit_on_a_constant_reward"),
    Bug("ppo_discrete", "(gamma * gae_lambda * ~done.bool()).numpy()",
        "(gamma * gae_lambda * ~terminated.bool()).numpy()",
        "The recursion runs on across a time limit, into another episode.",
        "test_advantages.py::test_batch_equals_its_episodes"),
    Bug("ppo_discrete", "advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)",
        "advantages = advantages / (advantages.std() + 1e-8)",
        "Advantages are scaled, but not centred.",
        "test_update.py::test_advantages_are_standardised_over_the_batch"),
    Bug("ppo_discrete", "loss = loss - args.ent_coef * policy.entropy().mean()",
        "loss = loss + args.ent_coef * policy.entropy().mean()",
        "The entropy bonus has the wrong sign: it punishes exploration (with --ent-coef only).",
        "test_objective.py::test_entropy_bonus_raises_the_entropy"),
    Bug("ppo_discrete", "return -torch.min(ratio * advantages",
        "return -torch.max(ratio * advantages",
        "The maximum for the minimum: an optimistic bound. KL and ratio_max grow.",
        "test_objective.py::test_six_cases"),
    Bug("ppo_discrete", "return -torch.min(ratio * advantages, clipped * advantages).mean()",
        "return -(clipped * advantages).mean()",
        "The clipped term alone: where a bad action has become likelier than 1 + ε, nothing brings"
        " it back.",
        "test_objective.py::test_six_cases"),
    Bug("ppo_continuous", "return -0.5 * z.square().sum(-1) - "
        "(self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)",
        "return -0.5 * z.square().mean(-1) - (self.log_std + 0.5 * math.log(2 * math.pi)).mean(-1)",
        "log π of a vector of actions is the sum over its parts, not their mean.",
        "test_distributions.py::test_gaussian_equals_pytorch_s"),
    Bug("ppo_continuous", "entropy = (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)",
        "entropy = (self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)",
        "The Gaussian's entropy lacks its ½ per dimension.",
        "test_distributions.py::test_entropy_is_the_mean_surprise"),
    Bug("ppo_discrete", "return 0.5 * F.mse_loss(values, returns)",
        "return F.mse_loss(values, returns)",
        "The ½ of the value loss is gone: --vf-coef means twice as much.",
        "test_objective.py::test_value_loss"),
    Bug("ppo_discrete", "loss = policy_loss(logprobs, old_logprobs, advantages, args.clip_coef)",
        "loss = policy_loss(logprobs, logprobs.detach(), advantages, args.clip_coef)",
        "log π_old is recomputed at every step: the ratio is always 1, so nothing is ever clipped.",
        "test_update.py::test_the_ratio_is_to_the_policy_that_acted"),
    Bug("ppo_discrete", "        batch = make_batch(agent, rollout, args)\n",
        "        agent.obs_stats.update(rollout.obs.flatten(0, 1))\n"
        "        batch = make_batch(agent, rollout, args)\n",
        "The statistics change before log π_old is computed: it is another policy than the one that"
        " acted (and each rollout is counted twice).",
        "test_normalisation.py::test_statistics_change_after_the_update"),
    Bug("ppo_discrete", "    rewards = agent.scale_rewards(rollout.rewards, rollout.done)\n",
        "    rewards = agent.scale_rewards(rollout.rewards, rollout.done)\n"
        "    next_values[-1] = 0\n",
        "No bootstrap at the rollout's end, as if every episode ended there.",
        "test_advantages.py::test_batch_of_a_rollout"),
    Bug("ppo_discrete", 'successor = np.where(done[:, None], infos["final_obs"], next_obs)',
        "successor = next_obs",
        "After an episode's end the next one's first observation stands for its last.",
        "test_rollout.py::test_next_obs_is_the_next_step_s_obs"),
    Bug("ppo_discrete", "    batch = Batch(obs, actions, logprobs, values, advantages, returns)\n",
        "    advantages = advantages.T.reshape(advantages.shape)\n"
        "    batch = Batch(obs, actions, logprobs, values, advantages, returns)\n",
        "Advantages are flattened in another order than the rest: each belongs to another step.",
        "test_advantages.py::test_batch_of_a_rollout"),
    Bug("ppo_discrete", "shuffled = torch.randperm(len(batch.obs)).to(batch.obs.device)",
        "shuffled = torch.arange(len(batch.obs)).to(batch.obs.device)",
        "Minibatches are not shuffled: each holds one piece of time.",
        "test_update.py::test_each_sample_once_per_epoch"),
    Bug("ppo_discrete", "scaled = rewards / self.return_stats.std.cpu()",
        "scaled = (rewards - self.return_stats.mean.cpu()) / self.return_stats.std.cpu()",
        "Rewards are centred: where staying alive pays, it no longer does. Metrics look healthy.",
        "test_normalisation.py::test_reward_scaling"),
    Bug("ppo_discrete", "    batch = Batch(obs, actions, logprobs, values, advantages, returns)\n",
        "    returns = advantages + values\n"
        "    batch = Batch(obs, actions, logprobs, values, advantages, returns)\n",
        "The critic's target is built from standardised advantages.",
        "test_advantages.py::test_the_critic_learns_returns_not_standardised_ones"),
    Bug("ppo_continuous", "steps.append((obs, actions, rewards, successor, terminated, done))",
        "steps.append((obs, actions.clip(-1, 1), rewards, successor, terminated, done))",
        "The clipped action is stored: log π is that of an action that was not sampled.",
        "test_rollout.py::test_stored_action_is_the_sample"),
    Bug("ppo_discrete", "return [theta - lr * (m / c1) / ((v / c2).sqrt() + 1e-5), m, v, c1, c2]",
        "return [theta - lr * m / (v.sqrt() + 1e-5), m, v, c1, c2]",
        "Adam without the correction of its bias: the first steps are too long.",
        "test_update.py::test_adam_equals_pytorch_s"),
    Bug("ppo_discrete", "gradient * (args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)",
        "gradient * (args.max_grad_norm / (norm + 1e-6))",
        "Gradients are scaled up to the norm, too, not only down.",
        "test_objective.py::test_gradient_clipping"),
    Bug("ppo_discrete", "lr = args.learning_rate * (1 - step / args.total_timesteps",
        "lr = args.learning_rate * (step / args.total_timesteps",
        "The learning rate rises from 0.",
        "test_runs.py::test_learning_rate_falls_linearly"),
    Bug("ppo_discrete", "self.args.gamma * ~done.numpy()", "self.args.gamma + 0 * ~done.numpy()",
        "The discounted return that scales the rewards does not begin anew with an episode.",
        "test_normalisation.py::test_reward_scaling"),
    Bug("trpo", "(kl <= args.target_kl and loss < loss_before)", "loss < loss_before",
        "The line search looks at the surrogate only: the trust region has no bound.",
        "test_trpo.py::test_line_search_takes_the_longest_allowed_step"),
    Bug("trpo", "(2 * args.target_kl / curvature).sqrt()", "(args.target_kl / curvature).sqrt()",
        "The step lacks a factor of √2: it reaches half of δ.",
        "test_trpo.py::test_full_step_is_predicted_to_reach_delta"),
    Bug("trpo", "return loss, kl_divergence(old, policy).mean()",
        "return loss, kl_divergence(policy, old).mean()",
        "The KL is the other way round. At π_old both have the same Hessian, so the step is nearly"
        " the same; what the line search checks is not.",
        "test_trpo.py::test_accepted_steps_stay_in_the_trust_region"),
    Bug("trpo", "lambda v: fisher(v) + damping * v", "fisher",
        "The Fisher matrix is not damped.",
        "test_trpo.py::test_damping_is_a_share_of_the_curvature"),
    Bug("trpo", "direction = residual + residual_sq / previous_sq * direction",
        "direction = residual",
        "Steepest descent in the place of conjugate gradient: the directions are not conjugate.",
        "test_trpo.py::test_conjugate_gradient_solves"),
    Bug("a2c", "return -(logprobs * advantages).mean()", "return -(logprobs * advantages).sum()",
        "The sum over the batch: the step grows with --num-envs (RMSprop hides most of it; the"
        " balance with the value loss is lost).",
        "test_a2c.py::test_policy_loss"),
    Bug("reinforce", "(rewards[t] + gamma * following) * mask[t]", "rewards[t] + gamma * following",
        "Returns are not cut by the mask.",
        "test_reinforce.py::test_rewards_to_go_by_hand"),
    Bug("reinforce", "returns - (own.sum() - own) / (steps.sum() - steps).clamp(min=1)",
        "returns - own.sum() / steps.sum()",
        "The baseline has the own return in it, so it depends on the action: a bias.",
        "test_reinforce.py::test_baselines_by_hand"),
    Bug("trpo", "args.cg_damping * (gradient @ fisher(gradient)) / (gradient @ gradient)",
        "args.cg_damping",
        "The damping is a constant: as F grows, it comes to nothing.",
        "test_trpo.py::test_damping_is_a_share_of_the_curvature"),
    Bug("trpo", "curvature = x @ fisher(x)", "curvature = x @ (fisher(x) + damping * x)",
        "The step's length is taken from the damped F: its KL stays below δ.",
        "test_trpo.py::test_full_step_is_predicted_to_reach_delta"),
]


def text_of(number: int) -> str:
    """The script with bug `number` (from 1) in it."""
    bug = BUGS[number - 1]
    text = (ROOT / f"{bug.script}.py").read_text("utf-8")
    if text.count(bug.right) != 1:
        raise ValueError(f"bug {number}: not once in {bug.script}.py: {bug.right}")
    return text.replace(bug.right, bug.wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("number", type=int, nargs="?", choices=range(1, len(BUGS) + 1),
                        metavar=f"1…{len(BUGS)}")
    parser.add_argument("--list", action="store_true", help="the numbers and their scripts")
    parser.add_argument("--solution", action="store_true", help="what is wrong with this number")
    args = parser.parse_args()
    if args.list:
        print(*(f"{number:2} {bug.script}" for number, bug in enumerate(BUGS, 1)), sep="\n")
    elif args.number is None:
        parser.error("give a number, or --list")
    elif args.solution:
        bug = BUGS[args.number - 1]
        print(f"{bug.script}.py: {bug.hint}\n\nright: {bug.right}\nwrong: {bug.wrong}\n"
              f"test:  {bug.test}")
    else:
        path = Path(f"bug_{args.number:02}.py")
        path.write_text(text_of(args.number), "utf-8")
        print(f"{path} is a copy of {BUGS[args.number - 1].script}.py with one slip in it.")


if __name__ == "__main__":
    sys.exit(main())
