"""What the lectures work out or claim, computed with the scripts' own functions.

    python -m pytest -s tests/test_lectures.py       print each table, to be read beside its slide

Each test prints its numbers under the slide's title, then asserts what is said of them. They are
of HSE 2025, lecture 5; RL Bootcamp 2024 and 2025; Sogang 2025, lecture 10; UW 2026.
"""
import functools
import itertools
import math
import textwrap

import numpy as np
import pytest
import torch
from conftest import ACTOR_CRITIC, PPO, SCRIPTS, each, each_kind, kinds
from torch import Tensor

REINFORCE = [s for s in SCRIPTS if s.__name__ == "reinforce"]
TRPO = [s for s in SCRIPTS if s.__name__ == "trpo"]
tensor = functools.partial(torch.tensor, dtype=torch.float64)
shown = set()


def show(title: str, says: str, header: tuple, *rows: tuple) -> None:
    """Print a table under its slide's title; only once where several scripts give the same one."""
    def text(cell):
        if isinstance(cell, (str, int)):
            return str(cell)
        if isinstance(cell, Tensor) and cell.numel() > 1:
            return "(" + ", ".join(f"{x:.3f}" for x in cell.tolist()) + ")"
        return f"{0.0 if abs(cell) < 1e-12 else float(cell):#.4g}"

    cells = [[text(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = ["  ".join(x.rjust(w) for x, w in zip(row, widths)).rstrip() for row in cells]
    table = "\n".join(["\n", title, *textwrap.wrap(says, 100), *lines])
    if table not in shown:
        print(table)
    shown.add(table)


def column(*values: float) -> Tensor:
    """One environment's numbers, (T, 1)."""
    return tensor(values).unsqueeze(1)


# ── Advantages ────────────────────────────────────────────────────────────────────────────────────
@each(ACTOR_CRITIC)
def test_gae_of_three_steps(script):
    """Sogang 2025, 'GAE Example: Three-Step Trajectory': γ = λ = 0.9, and V(s₃) = 0, as after a
    termination, whatever a critic says of s₃ (here 7). λ = 0 leaves the δ_t."""
    rewards, values, ends = column(1, 1, 1), column(0.5, 0.5, 0.5), column(0, 0, 1).bool()
    data = rewards, values, column(0.5, 0.5, 7), ends, ends
    deltas = script.compute_gae(*data, gamma=0.9, gae_lambda=0.0)
    advantages = script.compute_gae(*data, gamma=0.9, gae_lambda=0.9)
    show("Sogang 2025, 'GAE Example: Three-Step Trajectory'",
         "δ_t = r_t + γ V(s_{t+1}) − V(s_t), then backwards Â_t = δ_t + γλ Â_{t+1}, γλ = 0.81.",
         ("t", "r_t", "V(s_t)", "δ_t", "Â_t"),
         *zip(range(3), rewards, values, deltas, [f"{a:.5f}" for a in advantages.flatten()]))
    torch.testing.assert_close(deltas, column(0.95, 0.95, 0.5))
    torch.testing.assert_close(advantages, column(2.04755, 1.355, 0.5))


@each(ACTOR_CRITIC)
def test_gae_is_a_weighted_mean_of_n_step_advantages(script):
    """HSE 2025, 'Generalised Advantage Estimator': Â = (1−λ)(A⁽¹⁾ + λ A⁽²⁾ + λ² A⁽³⁾ + …).

    Where the episode or the rollout ends, the last one, A⁽ᴺ⁾, takes the weight that is left, λᴺ⁻¹.
    UW 2026, 'Generalized Advantage Estimation', has Σ λʲ A⁽ʲ⁾ without the (1−λ), which is no mean.
    """
    T, gamma, lam = 7, 0.9, 0.8
    torch.manual_seed(0)
    rewards, values, after = torch.randn(3, T, 3, dtype=torch.float64)
    terminated, done = torch.zeros(2, T, 3, dtype=torch.bool)
    terminated[4, 0] = done[4, :2] = True  # by a time limit in the second; the third goes on
    after[:-1] = torch.where(done[:-1], after[:-1], values[1:])
    gae = script.compute_gae(rewards, values, after, terminated, done, gamma, lam)
    for i, t in itertools.product(range(3), range(T)):
        n_step = []
        for n in range(1, T - t + 1):
            paid = sum(gamma**k * rewards[t + k, i] for k in range(n))
            rest = gamma**n * after[t + n - 1, i] * ~terminated[t + n - 1, i]
            n_step.append(float(paid + rest - values[t, i]))
            if done[t + n - 1, i]:
                break
        N = len(n_step)
        weights = [(1 - lam) * lam**k for k in range(N - 1)] + [lam**(N - 1)]
        uws = [lam**j for j in range(1, N + 1)]
        assert gae[t, i].item() == pytest.approx(np.dot(weights, n_step))
        if t == i == 0:
            show("HSE 2025, 'Generalised Advantage Estimator'; UW 2026, 'Generalized …'",
                 "GAE is a mean of n-step advantages; without (1−λ), as on UW's slide, it is not.",
                 ("n", "A⁽ⁿ⁾", "weight", "UW's weight"),
                 *zip(range(1, N + 1), n_step, weights, uws),
                 ("sum of the weights", "", sum(weights), sum(uws)),
                 ("sum of weight · A⁽ⁿ⁾", "", np.dot(weights, n_step), np.dot(uws, n_step)),
                 ("compute_gae", "", gae[t, i], ""))
            assert sum(weights) == pytest.approx(1) and sum(uws) > 2


def slides_gae(dones, rewards, values, next_value, gamma=0.9, lam=0.9):
    """As on the slide: what follows step t depends on dones[t + 1], after the last on dones[t]."""
    following, advantages, advantage = [*values[1:], next_value], [], 0.0
    for t in reversed(range(len(rewards))):
        goes_on = 1 - dones[min(t + 1, len(dones) - 1)]
        delta = rewards[t] + gamma * following[t] * goes_on - values[t]
        advantage = delta + gamma * lam * goes_on * advantage
        advantages.insert(0, advantage)
    return advantages


@pytest.mark.parametrize("ended, right", [
    ((0, 0, 1), (2.04755, 1.355, 0.5)), ((0, 1, 0, 0), (1.355, 0.5, 1.355, 0.5))], ids=str)
@each(ACTOR_CRITIC)
def test_the_slides_gae_reads_the_wrong_flag(script, ended, right):
    """Sogang 2025, 'GAE Implementation' and 'Rollout Collection (Loop)': two conventions, mixed.

    The loop stores in dones[t] whether step t ended the episode, but compute_gae reads dones[t + 1]
    in its place. With no flag set and V(s₃) = 0 it gives the lecture's example; with the flags that
    the loop would store, it does not.
    """
    T = len(ended)
    rewards, values, flags = [1.0] * T, [0.5] * T, column(*ended).bool()
    slide = slides_gae(ended, rewards, values, 0.0)
    ours = script.compute_gae(column(*rewards), column(*values), column(*values[1:], 0.0), flags,
                              flags, 0.9, 0.9).flatten().tolist()
    show("Sogang 2025, 'GAE Implementation': γ = λ = 0.9, r_t = 1, V(s_t) = 0.5, at the end 0",
         "With the flags of the slide's own rollout loop, some of the slide's Â_t are wrong.",
         ("t", "ended", "by hand", "script", "slide"), *zip(range(T), ended, right, ours, slide))
    assert slides_gae([0] * 3, [1.0] * 3, [0.5] * 3, 0.0) == pytest.approx([2.04755, 1.355, 0.5])
    assert ours == pytest.approx(right)
    assert max(abs(a - b) for a, b in zip(slide, right)) > 0.5


# ── PPO's objective ───────────────────────────────────────────────────────────────────────────────
SIX_CASES = [  # ρ, Â, the slide's value of the min at ε = 0.2, clipped, sign, gradient
    (1.1, +2.0, 1.1 * +2.0, "no", "+", "✓"), (0.9, -2.0, 0.9 * -2.0, "no", "-", "✓"),
    (0.5, +2.0, 0.5 * +2.0, "no", "+", "✓"), (0.5, -2.0, 0.8 * -2.0, "yes", "-", "0"),
    (1.5, +2.0, 1.2 * +2.0, "yes", "+", "0"), (1.5, -2.0, 1.5 * -2.0, "no", "-", "✓")]


@each(PPO)
def test_the_six_cases_of_ppo(script):
    """RL Bootcamp 2024, 'Trust Region Methods IV - PPO', by autograd through policy_loss. Its last
    four are the cases of UW 2026, 'Whats up with this min term?'."""
    rows = []
    for ratio, advantage, *_ in SIX_CASES:
        logprobs = tensor([math.log(ratio)]).requires_grad_()
        value = -script.policy_loss(logprobs, tensor([0.0]), tensor([advantage]), 0.2)
        slope = torch.autograd.grad(value, logprobs)[0].item() / ratio  # ∂/∂ log π = ρ ∂/∂ρ
        clipped = "no" if math.isclose(value.item(), ratio * advantage) else "yes"
        sign, has_gradient = "+" if value > 0 else "-", "✓" if slope else "0"
        rows.append((ratio, advantage, value.item(), clipped, sign, has_gradient, slope))
    show("RL Bootcamp 2024, 'Trust Region Methods IV - PPO', ε = 0.2",
         "Where the min takes the clipped term, the gradient is 0: it does not pull back.",
         ("case", "ρ", "Â", "min", "clipped", "sign", "gradient", "∂ min / ∂ρ"),
         *((case, *row) for case, row in enumerate(rows, 1)))
    for row, expected in zip(rows, SIX_CASES):
        assert row[2] == pytest.approx(expected[2]) and row[3:6] == expected[3:]
        assert row[6] == pytest.approx(row[1] if row[5] == "✓" else 0.0)


# ── The policy gradient and its variance ──────────────────────────────────────────────────────────
def estimates(script, theta, rewards, episodes, **options):
    """Mean (P,) and variance of what REINFORCE estimates, over all possible batches; and ∇J (P,).
    Step t of T pays rewards[t, a]; π(1) = sigmoid(θ_t), or of the only θ; V(s_t) is exact."""
    T, gamma = len(rewards), options.get("gamma", 1.0)
    args = script.Args(num_envs=episodes, episodes_per_update=episodes, **options)
    policy = script.Categorical(torch.stack([0 * theta, theta], -1).expand(T, 2))
    pay = (policy.logprobs.exp() * rewards).sum(-1)  # (T,) what each step pays on average
    objective = sum(gamma**t * r for t, r in enumerate(pay))  # J
    exact, = torch.autograd.grad(objective, theta, retain_graph=True)
    mask = torch.ones(T, episodes, dtype=torch.bool)
    values = script.rewards_to_go(pay.detach()[:, None], mask[:, :1], gamma).expand(T, episodes)
    gradients, probabilities = [], []
    for batch in itertools.product(itertools.product((0, 1), repeat=T), repeat=episodes):
        actions = torch.tensor(batch)  # (E, T)
        logprobs = policy.log_prob(actions).T  # (T, E)
        returns = script.rewards_to_go(rewards.gather(1, actions.T), mask, gamma)
        psi = script.with_baseline(returns, values, mask, args)
        loss = script.policy_loss(logprobs[mask], psi[mask], episodes)
        gradients.append(-torch.autograd.grad(loss, theta, retain_graph=True)[0])
        probabilities.append(logprobs.detach().sum().exp())
    gradients, probabilities = torch.stack(gradients), torch.stack(probabilities)
    mean = probabilities @ gradients
    return mean, probabilities @ (gradients - mean).square().sum(-1), exact


@each(REINFORCE)
def test_the_variance_of_the_policy_gradient(script):
    """UW 2026, 'Variance Reduction with Causality' and '… with a Baseline'; RL Bootcamp 2024,
    'Reducing Variance I-III': causality and a baseline lower the variance and leave the mean.

    Group-relative advantages (UW 2026, 'Ok but what is GRPO?') are divided by a std, so their
    gradient has another length; its noise is comparable as variance / ‖mean‖². RL Bootcamp 2025,
    'Batch Size vs. Learning Rate …': the variance is inversely proportional to the batch size.
    """
    theta, pay = tensor([0.5, -0.5, 0.0]).requires_grad_(), tensor([[1.0, 2.0]] * 3)
    cases = (("whole return", 3, "none", False), ("to go", 3, "none", True),
             ("to go − mean of the others", 3, "mean", True), ("to go − V(s_t)", 3, "value", True),
             ("to go − V(s_t), one episode", 1, "value", True), ("group", 3, "group", True))
    results = (estimates(script, theta, pay, episodes, baseline=baseline, reward_to_go=to_go)
               for _, episodes, baseline, to_go in cases)
    means, variances, (exact, *_) = zip(*results)
    show("UW 2026, 'Variance Reduction with Causality' and '… with a Baseline': 3 episodes, exact",
         "All means but the group's are ∇J. The first four have less and less noise; with a third "
         "of the episodes there is three times the variance.",
         ("Ψ_t", "mean gradient", "variance", "variance / ‖mean‖²"), ("∇J", exact, "", ""),
         *((x[0], m, v, v / m.square().sum()) for x, m, v in zip(cases, means, variances)))
    *unbiased, group = means
    torch.testing.assert_close(torch.stack(unbiased), exact.expand(5, 3))
    assert torch.cosine_similarity(group, exact, dim=0) > 0.99 and group.norm() < exact.norm()
    whole, to_go, others, value, one_episode, _ = variances
    assert whole > 1.5 * to_go and to_go > 1.5 * others and others > 1.5 * value
    torch.testing.assert_close(one_episode, 3 * value)


@each(REINFORCE)
def test_without_the_discount_in_front_it_is_no_gradient(script):
    """HSE 2025, 'Recap: Policy Gradient', has Σ_{k≥t} γ^(k−t) R_k among its Ψ_t: γᵗ is missing.

    Two steps with one θ for both: action 1 first costs 1 and then pays 1.5. With γ = ½ that is not
    worth it, J = π(1) (−1 + ½·1.5), but reward-to-go without its γᵗ makes it −1 + 1.5. The whole
    return is discounted from the start, so --no-reward-to-go does follow ∇J.
    """
    theta, rewards = tensor([0.0]).requires_grad_(), tensor([[0.0, -1.0], [0.0, 1.5]])
    whole, to_go = (estimates(script, theta, rewards, 1, gamma=0.5, baseline="none", reward_to_go=x)
                    for x in (False, True))
    show("HSE 2025, 'Recap: Policy Gradient', γ = 0.5, exact",
         "Reward-to-go without γᵗ does not estimate ∇J: here it even points the other way.",
         ("", "mean"), ("∇J", whole[2]), ("whole return, discounted from the start", whole[0]),
         ("reward-to-go, discounted from t on", to_go[0]))
    assert whole[2].item() == pytest.approx(0.25 * (-1 + 0.5 * 1.5)) == whole[0].item()
    assert to_go[0].item() == pytest.approx(0.25 * (-1 + 1.5))


# ── Policy improvement and the natural gradient ───────────────────────────────────────────────────
def solve(logprobs, gamma=0.9):
    """Of log π(a|s), (S, A), exactly: J, the advantages (S, A), and the visits d(s), summing to 1.
    Action 1 leads on, 0 → 1 → 2, and pays 1 in state 2; action 0 leads to the start, pays 0.2."""
    moves, rewards = torch.zeros(3, 2, 3).double(), tensor([[0.2, 0.0], [0.2, 0.0], [0.2, 1.0]])
    moves[:, 0, 0] = moves[[0, 1, 2], 1, [1, 2, 2]] = 1.0  # p(s'|s,a)
    pi, start = logprobs.exp(), tensor([1.0, 0.0, 0.0])
    onward = torch.eye(3).double() - gamma * torch.einsum("sa,sap->sp", pi, moves)
    values = torch.linalg.solve(onward, (pi * rewards).sum(-1))
    visits = (1 - gamma) * torch.linalg.solve(onward.T, start)
    return start @ values, rewards + gamma * moves @ values - values[:, None], visits


def policy(*logits: float) -> Tensor:
    """log π(a|s), (S, A), from the logit of action 1 in each state."""
    return tensor([[0.0, x] for x in logits]).log_softmax(-1)


def surrogate(script, new, old, gamma=0.9):
    """L = E over s ~ d_old, a ~ π_old of [ρ A_old] / (1−γ). The script's loss is a plain mean over
    all (s, a), so each A has the weight d_old(s) π_old(a|s) here."""
    _, advantages, visits = solve(old)
    weighted = old.numel() * visits[:, None] * old.exp() * advantages
    return -script.policy_loss(new.flatten(), old.flatten(), weighted.flatten()) / (1 - gamma)


@each(TRPO)
def test_improvement_surrogate_and_lower_bound(script):
    """HSE 2025, 'Alternative Form' and 'Optimisation in Policy Space', with the slide's constant C:

        J(π) − J(π_old) = E_{s~d_π, a~π}[A_old] / (1−γ)                (1)
                        ≈ L = E_{s~d_old, a~π_old}[ρ A_old] / (1−γ)    (2)
                        ≥ L − C √KL,   C = √2 γ / (1−γ)² · max |A_old|     (3)

    From γ = ½ on (3) never promises a gain, as |L| ≤ C √KL then: TRPO's δ is chosen by hand.
    """
    gamma, old, rows = 0.9, policy(0, 0, 0), []
    j_old, advantages, visits = solve(old)
    C = math.sqrt(2) * gamma / (1 - gamma)**2 * advantages.abs().max()
    for logits in ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2), (1, 1, 1), (1, -1, 1), (4, -4, 4)):
        new = policy(*logits)
        j_new, _, visits_new = solve(new)
        of_new = (new.exp() * advantages).sum(-1) / (1 - gamma)  # E_{a~π}[A_old] in each state
        gain, L = j_new - j_old, surrogate(script, new, old)
        kl = visits @ script.kl_divergence(script.Categorical(old), script.Categorical(new))
        rows.append((str(logits), gain, visits_new @ of_new, L, kl, L - C * kl.sqrt()))
        torch.testing.assert_close(visits_new @ of_new, gain)
        torch.testing.assert_close(L, visits @ of_new)
        torch.testing.assert_close(kl, visits @ (old.exp() * (old - new)).sum(-1))
    show("HSE 2025, 'Alternative Form', 'Optimisation in Policy Space': 3 states, γ = 0.9, exact",
         "The gain is (1). L is near it while the KL is small; far away it can promise a gain and "
         f"bring a loss. The bound (3) holds, with C = {C:.1f}.",
         ("logits of action 1", "J − J_old", "(1)", "(2) L", "KL", "(3) L − C√KL"), *rows)
    gap, gap_of_twice = (L - gain for _, gain, _, L, *_ in rows[:2])
    assert 3.5 < gap_of_twice / gap < 4.5, "L is right to first order"
    assert rows[-1][1] < 0 < rows[-1][3] and all(row[5] <= row[1] for row in rows)


def natural_gradient(script, parameter, kl, gradient):
    """x with F x = g, as trpo.py's policy_update finds it, but undamped; and v → F v."""
    kl_gradient = script.flat_gradient(kl, [parameter], create_graph=True)
    fisher = functools.partial(script.fisher_vector_product, kl_gradient, [parameter])
    return script.conjugate_gradient(fisher, gradient, 10), fisher


@each(TRPO)
def test_only_the_plain_step_depends_on_the_parametrisation(script):
    """UW 2026, 'Parameterization dependence of PG': L = θ₁ + θ₂ = √φ₁ + 1/φ₂, where φ₁ = θ₁² and
    φ₂ = 1/θ₂. Here the policy is a Gaussian of mean θ and σ = 1, and L its expected a₁ + a₂."""
    rows = []
    for name, start, mean_of in (
            ("θ", [2.0, 0.5], lambda p: p),
            ("φ", [4.0, 2.0], lambda p: torch.stack([p[0].sqrt(), 1 / p[1]]))):
        p, log_std = tensor(start).requires_grad_(), tensor([0.0, 0.0])
        old, new = (script.Gaussian(x, log_std) for x in (mean_of(p).detach(), mean_of(p)))
        gradient = script.flat_gradient(mean_of(p).sum(), [p])
        natural, _ = natural_gradient(script, p, script.kl_divergence(old, new), gradient)
        moves = (torch.autograd.functional.jvp(mean_of, p, x)[1] for x in (gradient, natural))
        rows.append((name, p.detach(), gradient, natural, *moves))
    show("UW 2026, 'Parameterization dependence of PG'",
         "A plain step in θ moves the policy differently from one in φ; a natural step does not.",
         ("", "at", "∇L", "F⁻¹∇L", "∇L moves θ by", "F⁻¹∇L moves θ by"), *rows)
    (*_, gradient, _, plain, natural), (*_, phi_gradient, _, phi_plain, phi_natural) = rows
    assert gradient.tolist() == [1, 1] and phi_gradient.tolist() == [0.25, -0.25]  # ½ θ₁⁻¹, −θ₂²
    torch.testing.assert_close(torch.stack([natural, phi_natural]), torch.ones(2, 2).double())  # σ²
    assert (phi_plain - plain).abs().min() > 0.5


@each(TRPO)
def test_a_natural_step_gains_more_at_the_same_kl(script):
    """HSE 2025, 'Trust Region Policy Optimisation (TRPO)', and RL Bootcamp 2025, 'The Impact of the
    Trust Region': s = √(2δ / gᵀF⁻¹g) F⁻¹g. In state 2 action 1 is good, but so rare that ∇J hardly
    sees it; to make so rare an action a little less rare costs hardly any KL."""
    logits, delta, rows = policy(0, 0, -3).requires_grad_(), 0.001, []
    old = logits.detach().log_softmax(-1)
    j_old, _, visits = solve(old)

    def kl_to(logits):
        return visits @ script.kl_divergence(script.Categorical(old), script.Categorical(logits))

    g = script.flat_gradient(surrogate(script, logits.log_softmax(-1), old), [logits])
    torch.testing.assert_close(g, script.flat_gradient(solve(logits.log_softmax(-1))[0], [logits]))
    x, fisher = natural_gradient(script, logits, kl_to(logits), g)
    for name, direction in (("plain, g", g), ("natural, F⁻¹g", x)):
        step = (2 * delta / (direction @ fisher(direction))).sqrt() * direction
        moved = logits.detach() + step.view(3, 2)
        gain = solve(moved.log_softmax(-1))[0] - j_old
        rows.append((name, step.view(3, 2) @ tensor([-1.0, 1.0]), kl_to(moved), g @ step, gain))
    show("HSE 2025, 'Trust Region Policy Optimisation (TRPO)': 3 states, δ = 0.001, exact",
         "At the same KL the natural step gains more.",
         ("along", "change of log π(1)/π(0)", "KL", "gain predicted, gᵀs", "J − J_old"), *rows)
    plain, natural = rows
    assert all(row[2].item() == pytest.approx(delta, rel=0.2) for row in rows)
    assert natural[3] > 1.2 * plain[3] and natural[4] > 1.2 * plain[4]


@each(TRPO)
def test_conjugate_gradient_against_gradient_descent(script):
    """UW 2026, 'Trust Region Policy Optimization – Conjugate Gradient': it needs products F v only,
    its directions are F-orthogonal (the slide's dᵢᵀF dᵢ = 0 means dᵢ and dⱼ), and N steps do."""
    torch.manual_seed(0)
    rows, directions, (axes, _) = [], [], torch.linalg.qr(torch.randn(6, 6).double())
    F = axes @ torch.logspace(0, 3, 6).double().diag() @ axes.T  # its condition number is 1000
    g, x = axes.sum(1), torch.zeros(6).double()  # g is as long along each axis of F
    best = torch.linalg.solve(F, g)
    for k in range(1001):
        if k <= 6 or k in (100, 1000):
            found = [x, script.conjugate_gradient(F.mv, g, k)]
            rows.append((k, *((F @ y - g).norm() / g.norm() for y in found),
                         *((y - best) @ F @ (y - best) / (best @ F @ best) for y in found)))
        residual = g - F @ x  # steepest descent, each step as long as is best for it
        x = x + residual @ residual / (residual @ F @ residual) * residual
    show("UW 2026, 'Trust Region Policy Optimization – Conjugate Gradient': N = 6, condition 1000",
         "Conjugate gradient is done after N steps. Residual: ‖Fx − g‖ / ‖g‖. Loss: how far "
         "½ xᵀFx − gᵀx is above its minimum; 1 at the start.",
         ("k", "residual, descent", "conjugate", "loss, descent", "conjugate"), *rows)
    assert rows[6][2] < 1e-5 < 0.01 < rows[7][1] and rows[6][4] < 1e-9 < 0.01 < rows[7][3]
    script.conjugate_gradient(lambda v: directions.append(v) or F @ v, g, 6)
    products = torch.stack(directions) @ F @ torch.stack(directions).T
    scale = products.diag().sqrt()
    torch.testing.assert_close(products / scale / scale[:, None], torch.eye(6).double())


# ── Ratios ────────────────────────────────────────────────────────────────────────────────────────
@each_kind(TRPO + PPO)
def test_importance_weights_of_trajectories_explode(script, kind):
    """UW 2026, 'Expanding the Importance Sampling Objective'; RL Bootcamp 2024, 'Policy Gradient
    Derivation with Importance Sampling': Var Π_t ρ_t = E[ρ²]ᵀ − 1. TRPO and PPO use each step's ρ.
    """
    np.random.seed(0)
    rows, no_clipping = [], [] if script in TRPO else [math.inf]
    if kind == "discrete":
        make, old, new = script.Categorical, tensor([0.5, 0.5]).log(), tensor([0.55, 0.45]).log()
        second_moment = 1.01  # E[ρ²]
    else:  # the mean moves by 0.1 σ
        make = functools.partial(script.Gaussian, log_std=tensor([0.0, 0.0]))
        old, new, second_moment = tensor([0.0, 0.0]), tensor([0.06, 0.08]), math.exp(0.01)
    for T in (1, 10, 100, 1000):
        actions = make(old.expand(1000, T, 2)).sample()
        logprobs, old_logprobs = make(new).log_prob(actions), make(old).log_prob(actions)
        ratio, weight = (logprobs - old_logprobs).exp(), (logprobs - old_logprobs).sum(1).exp()
        ones = torch.ones(1000 * T).double()
        mean = -script.policy_loss(logprobs.flatten(), old_logprobs.flatten(), ones, *no_clipping)
        rows.append((T, math.sqrt(second_moment**T - 1), weight.std(),
                     weight.sum()**2 / weight.square().sum(), mean, ratio.std()))
    show(f"UW 2026, 'Expanding the Importance Sampling Objective': {kind}, KL 0.005 per step",
         "Of 1000 trajectories, weighted by Πρ, fewer and fewer count; a step's ρ stays near 1.",
         ("T", "std of Πρ, exact", "sampled", "counting, sampled", "mean of ρ", "std of ρ"), *rows)
    _, exact, sampled, counting, mean, std = (list(map(float, x)) for x in zip(*rows))
    assert std == pytest.approx([0.1] * 4, rel=0.1) and mean == pytest.approx([1.0] * 4, abs=0.02)
    assert sampled[:3] == pytest.approx(exact[:3], rel=0.3)  # at 1000 none of the rare large ones
    assert counting[0] > 980 and counting[1] < 950 and counting[2] < 600 and counting[3] < 60


def equally_likely(script, change):
    """log π and log π_old of actions that are equally likely under π_old, and the exact KL."""
    if kinds(script) == ["discrete"]:
        old = tensor([0.4, 0.3, 0.2, 0.1]).log()
        new = tensor([0.42, 0.31, 0.19, 0.08] if change == "small" else [0.1, 0.2, 0.3, 0.4]).log()
        actions, kl = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3]), old.exp() @ (old - new)
        after, before = script.Categorical(new), script.Categorical(old)
    else:  # the quantiles of N(0, 1)
        shift, zero = 0.1 if change == "small" else 1.0, tensor([0.0])
        places = (torch.arange(200_000).double() + 0.5) / 200_000
        actions, kl = torch.special.ndtri(places)[:, None], shift**2 / 2
        after, before = script.Gaussian(zero + shift, zero), script.Gaussian(zero, zero)
    return after.log_prob(actions), before.log_prob(actions), float(kl)


@each(PPO)
def test_estimators_of_the_kl(script):
    """Sogang 2025, 'Common PPO Issues and Debugging': KL < 0.05. It has to be estimated, from
    a ~ π_old: k1 = −log ρ, k2 = ½ (log ρ)², k3 = ρ − 1 − log ρ, which approx_kl is (Schulman,
    'Approximating KL Divergence', 2020, whose two Gaussians these are)."""
    rows = {}
    for change in ("small", "large"):
        logprobs, old_logprobs, kl = equally_likely(script, change)
        k1 = old_logprobs - logprobs
        k3 = torch.vmap(script.approx_kl)(logprobs[:, None], old_logprobs[:, None])  # one by one
        for name, k in (("k1", k1), ("k2", k1.square() / 2), ("k3", k3)):
            rows[change, name] = (f"{change}, KL = {kl:.4f}", name, k.mean().item() / kl - 1,
                                  k.std(correction=0).item() / kl,
                                  (k < -1e-9).double().mean().item())
    show(f"Sogang 2025, 'Common PPO Issues and Debugging': the KL, {kinds(script)[0]} actions",
         "k1 is right on average, but mostly noise; k2 has little noise, but a bias if the change "
         "is large; k3, logged as approx_kl, has little noise and no bias, and is never negative.",
         ("change of π", "", "bias / KL", "std / KL", "share below 0"), *rows.values())
    for (change, name), (*_, bias, std, negative) in rows.items():
        assert abs(bias) < 0.01 if name != "k2" else change == "small" or abs(bias) > 0.1
        assert negative > 0.2 if name == "k1" else negative == 0
        assert std < 2.5 or (change, name) == ("small", "k1") and std > 10
    if kinds(script) == ["continuous"]:  # the blog's numbers
        assert [x[3] for x in rows.values()] == pytest.approx([20, 1.42, 1.42, 2, 1.73, 1.7], 0.05)
