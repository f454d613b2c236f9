"""Makes updates.json: whole updates of reinforcement learning on the small models of models/, in PyTorch in f64 with autograd.

    python updates.py OUT MODELS [CASE ...]    (a few minutes; MODELS is the folder that models.py made)

Written from the papers, not from the Rust code: PPO arXiv 1707.06347 eq. 7, dual clip 1912.09729 eq. 5, GAE 1506.02438 eq. 16, GRPO
2402.03300, Dr. GRPO 2503.20783, leave-one-out 2402.14740, batch deviation 2508.08221, DAPO's averages and soft overlong punishment
2503.14476 eq. 13, CISPO 2506.13585 eq. 4 and 5, GSPO's token form 2507.18071 eq. 13 and 14, KL estimators of J. Schulman's note
"Approximating KL Divergence", the clipped value loss of OpenAI's PPO2. The models are transformers', the adapters PEFT's, the optimizer
torch.optim.AdamW.

A case has its settings, the rounds' inputs, and quantities by name: their values, by how much these move when the numbers that a
trainer's host holds in f32 are rounded, and by how much PyTorch is off that computes everything in f32. Both errors are shares of
the largest magnitude; where that is below 1, of 1, but for tensors. The values of a tensor are projections of its change since the
start. No token lies so near to a clip's bound that rounding decides.
"""
import contextlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

import peer

HOST_RUNS = 8
ORDERS = 8
# Odd numbers; multiples of them modulo 2^32 look like chance.
PROJECTIONS = [2654435761, 2246822519, 3266489917]

DEFAULTS = dict(
    algorithm="grpo", objective="clip", steps=2, states=4, samples=3, epochs=2, minibatches=2, learning_rate=2**-11,
    critic_learning_rate=2**-9, clip_low=0.2, clip_high=0.2, dual_clip=3.0, value_clip=0.5, gamma=1.0, **{"lambda": 1.0},
    kl_in="reward", kl_estimator="k1", kl_coefficient=0.0, entropy_coefficient=0.0, whiten=True, group_baseline="mean",
    group_deviation="group", group_epsilon=0.02, drop_dead_groups=False, overlong="keep", overlong_penalty=1.0, overlong_buffer=0,
    loss_average="token", reply_scale=8.0, max_norm=1.0, critic_warmup=0, beta1=0.9, beta2=0.999, weight_decay=0.01,
    schedule="constant", warmup=0, target_kl=0.0,
    micro_tokens=8192,  # how many tokens one pass holds changes nothing here: losses are sums over a minibatch
)


def case(model, temperature=1.0, spread=0.4, rounds=2, max_tokens=9, truncated=False, dead=(), **settings):
    """`spread`: standard deviation of the behaviour's log-probabilities around the policy's; `truncated`: all replies
    of the first group and one of every other but the second have no end; `dead`: (round, group) whose rewards are equal."""
    return dict(model=model, temperature=temperature, spread=spread, rounds=rounds, max_tokens=max_tokens, truncated=truncated,
                dead=dead, settings=DEFAULTS | settings)


ppo = dict(algorithm="ppo", states=6, samples=2, kl_coefficient=0.125, value_clip=2**-6, gamma=0.99, **{"lambda": 0.95})
in_loss = dict(kl_in="loss", kl_coefficient=0.25)
CASES = {
    "ppo": case("qwen3-tied", **ppo, dual_clip=1.5, micro_tokens=40),
    "ppo, plain values, uneven minibatches": case(
        "llama-tied-biased", **ppo | dict(states=5, gamma=1.0, value_clip=0.0, **{"lambda": 1.0}), whiten=False, dual_clip=0.0,
        max_norm=0.0),
    "ppo, k3 in the loss": case("qwen2-tied", **ppo | in_loss, kl_estimator="k3", loss_average="reply", max_norm=0.125),
    "ppo, critic first": case("qwen3-untied-biased", **ppo, critic_warmup=1),
    "ppo, overlong masked, a whole minibatch": case(
        "qwen2-untied-yarn", **ppo, overlong="mask", truncated=True, minibatches=6, micro_tokens=1),
    "grpo, k2 in the loss": case("qwen3-tied", **in_loss, kl_estimator="k2"),
    "grpo, k3 in the loss": case("llama3", **in_loss, kl_estimator="k3", loss_average="reply", clip_high=0.28, micro_tokens=1),
    "grpo, k3 in the reward, batch, leave one out": case(
        "qwen2-untied-yarn", kl_coefficient=0.25, kl_estimator="k3", group_deviation="batch", group_baseline="leave_one_out"),
    "grpo, leave one out, group": case("qwen2-tied", group_baseline="leave_one_out", kl_coefficient=0.25, kl_estimator="k2"),
    "dr. grpo": case("llama-yarn", group_deviation="none", loss_average="sample", max_norm=0.0, dual_clip=0.0),
    "cispo": case("qwen3-tied", objective="cispo", clip_high=0.28, dual_clip=1.5, **in_loss, kl_estimator="k2", spread=0.5),
    "gspo": case(
        "llama3", objective="gspo", states=6, loss_average="reply", clip_low=0.1, clip_high=0.15, dual_clip=1.25, spread=1.0,
        kl_coefficient=0.125, micro_tokens=1),
    "dead groups dropped": case("qwen2-tied", drop_dead_groups=True, minibatches=4, dead=[(0, 1), (1, 3)], kl_coefficient=0.25),
    "dead groups kept": case("qwen3-untied-biased", dead=[(0, 1), (1, 3), (1, 0)], kl_coefficient=0.25, loss_average="sample"),
    "overlong masked": case("llama-yarn", overlong="mask", truncated=True, loss_average="reply", micro_tokens=1),
    "overlong penalised": case("qwen2-untied-yarn", overlong="penalise", overlong_penalty=0.75, truncated=True),
    "overlong punished softly": case("llama-tied-biased", overlong="soft", overlong_buffer=4, overlong_penalty=0.5, truncated=True),
    "entropy bonus": case("qwen3-tied", entropy_coefficient=0.125, temperature=0.75),
    "cosine": case("llama3", schedule="cosine", steps=4, warmup=2, rounds=4, epochs=1, minibatches=1),
    "linear": case("qwen2-tied", schedule="linear", steps=4, warmup=1, rounds=3, epochs=1, minibatches=1),
    "target kl, one pass": case("llama-yarn", target_kl=0.03125, epochs=3),
    "target kl, two passes": case("qwen3-tied", target_kl=0.2, epochs=4, spread=0.3, learning_rate=2**-8),
    "weight decay": case("qwen2-untied-yarn", **ppo, weight_decay=0.5, beta1=0.75, beta2=0.875, learning_rate=2**-8, max_norm=0.5),
    "extreme ratios, no dual clip": case("qwen3-tied", temperature=0.125, spread=24.0, dual_clip=0.0),
    "extreme ratios": case("llama3", temperature=0.125, spread=24.0, **in_loss | dict(kl_coefficient=2.0**-30), kl_estimator="k2"),
}


class Run:
    """How one pass over a case computes. `noise` is a generator: what the host holds in f32 is then off by its rounding."""

    def __init__(self, dtype=torch.float64, attention="sdpa", order=None, noise=None):
        self.dtype, self.attention, self.order, self.noise = dtype, attention, order, noise
        self.margin = math.inf  # how near a token comes to a place where the loss has a kink or a jump
        self.mode = peer.Exact() if dtype is torch.float64 else contextlib.nullcontext()

    def carried(self, x):
        if self.noise is None:
            return x
        off = torch.rand(x.shape, generator=self.noise, dtype=self.dtype) * 2 - 1
        return x * (1 + off * 2.0**-22)  # up to four roundings to the nearest f32

    def near(self, distance, is_counted):
        if is_counted.any():
            self.margin = min(self.margin, distance[is_counted].abs().min().item())


class Policy:
    """A base with its adapter; its channels and tokens in the run's order."""

    def __init__(self, run, folder):
        self.run = run
        self.model = peer.open_model(folder, run.dtype, run.attention, folder / "adapter")
        orders = {}
        if run.order is not None:
            orders = peer.draw_orders(self.model, torch.Generator().manual_seed(run.order))
        for name, parameter in self.model.named_parameters():
            parameter.data = peer.reordered(parameter.data, peer.axes(name), orders)
        self.backs = {axis: order.argsort() for axis, order in orders.items()}
        self.vocabulary = self.backs.get("V", torch.arange(self.model.config.vocab_size))
        self.trained = peer.trained(self.model)
        self.start = self.tensors()

    def tensors(self):
        tensors = {name: peer.reordered(p.detach().clone(), peer.axes(name), self.backs) for name, p in self.trained.items()}
        return {name: tensor.double() for name, tensor in tensors.items()}

    def changes(self):
        return {name: tensor - self.start[name] for name, tensor in self.tensors().items()}

    def scores(self, replies, temperature):
        """Log-probability and entropy of every reply token (replies, longest)."""
        logits = self.model(self.vocabulary[replies.ids]).logits
        rows = torch.log_softmax(replies.predicting(logits) / temperature, -1)
        targets = self.vocabulary[replies.targets]
        return rows.gather(-1, targets[..., None])[..., 0], -(rows.exp() * rows).sum(-1)

    def hidden(self, replies):
        """After the final norm, at the places that predict the reply tokens (replies, longest, C)."""
        return replies.predicting(self.model.base_model.model.model(self.vocabulary[replies.ids]).last_hidden_state)


class Critic(Policy):
    def __init__(self, run, folder):
        super().__init__(run, folder)
        channels = self.model.config.hidden_size
        w, b = (torch.zeros(shape, dtype=run.dtype, requires_grad=True) for shape in [(1, channels), (1,)])
        self.trained |= {"w": w, "b": b}
        self.start = self.tensors()

    def tensors(self):
        head = {name: p for name, p in self.trained.items() if name in "wb"}
        self.trained = {name: p for name, p in self.trained.items() if name not in "wb"}
        tensors = super().tensors()
        self.trained |= head
        for name, p in head.items():
            tensors[name] = peer.reordered(p.detach().clone(), "1C" if name == "w" else "1", self.backs).double()
        return tensors

    def values(self, replies):
        return self.hidden(replies) @ self.trained["w"][0] + self.trained["b"]


class Replies:
    """Replies side by side, padded on the right, which a causal model does not see."""

    def __init__(self, prompts, replies):
        self.lengths = torch.tensor([len(r) for r in replies])
        longest = int(self.lengths.max())
        self.is_token = torch.arange(longest) < self.lengths[:, None]
        width = max(len(p) + len(r) for p, r in zip(prompts, replies))
        self.ids = torch.tensor([(p + r + [0] * width)[:width] for p, r in zip(prompts, replies)])
        self.targets = torch.tensor([(r + [0] * longest)[:longest] for r in replies])
        starts = torch.tensor([len(p) - 1 for p in prompts])
        self.places = (starts[:, None] + torch.arange(longest)).clamp(max=width - 1)

    def predicting(self, rows):
        return rows[torch.arange(len(rows))[:, None], self.places]

    def padded(self, lists, dtype):
        longest = self.is_token.shape[1]
        return torch.tensor([(list(x) + [0.0] * longest)[:longest] for x in lists], dtype=torch.float64).to(dtype)


def of_groups(groups):
    return Replies([g["prompt"] for g in groups for _ in g["replies"]], [r for g in groups for r in g["replies"]])


def larger(a, b):
    """max; a tie is the first's."""
    return torch.where(b > a, b, a)


def kl(estimator, p, q):
    d = torch.clamp(p - q, -20, 20)
    return {"k1": d, "k2": d**2 / 2, "k3": torch.exp(-d) - 1 + d}[estimator]


def gae(run, rewards, values, lengths, gamma, lam):
    advantages = torch.zeros_like(rewards)
    for i, n in enumerate(lengths.tolist()):
        following, running = 0.0, 0.0
        for t in reversed(range(n)):
            delta = rewards[i, t] + gamma * following - values[i, t]
            running = run.carried(delta + gamma * lam * running)
            advantages[i, t], following = running, values[i, t]
    return advantages


def group_advantages(s, scores):
    """Scores (groups, samples) to advantages of the same shape."""
    mean = scores.mean(1, keepdim=True)
    if s["group_baseline"] == "leave_one_out":
        mean = (scores.sum(1, keepdim=True) - scores) / (scores.shape[1] - 1)
    if s["group_deviation"] == "none":
        return scores - mean
    deviation = scores.std(1, keepdim=True) if s["group_deviation"] == "group" else scores.std()
    return (scores - mean) / (deviation + s["group_epsilon"])


def weights(s, replies, is_live):
    """Of every token in its minibatch's loss."""
    live = (replies.is_token & is_live[:, None]).double()
    if s["loss_average"] == "token":
        return live / live.sum()
    if s["loss_average"] == "sample":
        return live / (is_live.sum() * s["reply_scale"])
    return live / (is_live.sum() * replies.lengths[:, None])


def policy_terms(run, s, p, b, advantage, replies, is_counted):
    """Of every token: loss of the policy, whether it is clipped, the log-ratio l and the ratio."""
    l = p - b
    if s["objective"] == "gspo":
        mean = (torch.where(replies.is_token, l, 0).sum(1) / replies.lengths)[:, None]
        l = mean.detach() + p - p.detach()
    l = torch.clamp(l, -20, 20)
    ratio = torch.exp(l)
    low, high = 1 - s["clip_low"], 1 + s["clip_high"]
    bounded = torch.clamp(ratio, low, high)
    for bound in (low, high, *([s["dual_clip"]] if s["dual_clip"] > 1 else [])):
        run.near(ratio.detach() - bound, is_counted)
    if s["objective"] == "cispo":
        return -bounded.detach() * advantage * p, bounded != ratio, l, ratio
    plain, clipped = -advantage * ratio, -advantage * bounded
    loss = larger(plain, clipped)
    if s["objective"] == "clip" and s["dual_clip"] > 1:
        cap = -advantage * s["dual_clip"]
        loss = torch.where((advantage < 0) & (cap < loss), cap, loss)
    return loss, clipped > plain, l, ratio


def factor(s, u):
    if u < s["warmup"]:
        return (u + 1) / (s["warmup"] + 1)
    done = (u - s["warmup"]) / max(1, s["steps"] - s["warmup"])
    return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[s["schedule"]]


def optimizer_of(s, parameters):
    groups = [
        dict(params=[p for p in parameters if p.dim() > 1], weight_decay=s["weight_decay"]),
        dict(params=[p for p in parameters if p.dim() < 2], weight_decay=0.0),
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=1.0, betas=(s["beta1"], s["beta2"]), eps=1e-8, foreach=False)


def step(run, s, optimizer, loss, rate, is_trained=True):
    """Returns the gradient's norm before clipping."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in parameters))
    scale = torch.clamp(s["max_norm"] / (norm + 1e-6), max=1.0) if s["max_norm"] > 0 else torch.ones_like(norm)
    scale = run.carried(scale)
    for p in parameters:
        p.grad *= scale
    for group in optimizer.param_groups:
        group["lr"] = run.carried(torch.tensor(rate, dtype=torch.float64)).item()
    if is_trained:
        optimizer.step()
    return norm


class Learner:
    def __init__(self, run, case):
        folder = case["folder"]
        self.run, self.case, self.s = run, case, numbers(case["settings"])
        self.temperature = np.float32(case["temperature"]).item()
        self.actor, self.reference = Policy(run, folder), Policy(run, folder)
        self.actor_optimizer = optimizer_of(self.s, list(self.actor.trained.values()))
        self.critic = None
        if self.s["algorithm"] == "ppo":
            self.critic = Critic(run, folder)
            self.critic_optimizer = optimizer_of(self.s, list(self.critic.trained.values()))

    def rewards(self, round, replies):
        s, rewards = self.s, torch.tensor(round["rewards"], dtype=torch.float64)
        truncated = torch.tensor(round["truncated"])
        if s["overlong"] == "penalise":
            rewards = rewards - s["overlong_penalty"] * truncated
        if s["overlong"] == "soft":
            free, buffer = self.case["max_tokens"] - s["overlong_buffer"], s["overlong_buffer"]
            over = (replies.lengths - free).clamp(min=0)
            rewards = rewards - s["overlong_penalty"] * over / buffer
        return rewards.to(self.run.dtype), truncated & (s["overlong"] == "mask")

    def update(self, u, round):
        """One round; its quantities by name."""
        run, s, found = self.run, self.s, {}
        groups = round["groups"]
        replies = of_groups(groups)
        behaviour = replies.padded(round["behaviour"], run.dtype)
        rewards, is_masked = self.rewards(round, replies)
        by_group = rewards.view(len(groups), -1)
        is_dead = (by_group == by_group[:, :1]).all(1)
        is_dropped = is_dead & (s["drop_dead_groups"] and s["algorithm"] == "grpo")
        is_live = ~is_masked & ~is_dropped.repeat_interleave(by_group.shape[1])
        counted = replies.is_token & is_live[:, None]
        found["dead_share"] = is_dead.double().mean()

        with torch.no_grad():
            q = run.carried(self.reference.scores(replies, self.temperature)[0])
            token_rewards = torch.zeros_like(q)
            if s["kl_in"] == "reward":
                token_rewards = run.carried(-s["kl_coefficient"] * kl(s["kl_estimator"], behaviour, q) * replies.is_token)
            token_rewards[torch.arange(len(rewards)), replies.lengths - 1] += rewards
            if self.critic:
                old = run.carried(self.critic.values(replies))
                advantage = gae(run, token_rewards, old, replies.lengths, s["gamma"], s["lambda"])
                target = run.carried(advantage + old)
                chosen = target[counted]
                found["explained_variance"] = 1 - (chosen - old[counted]).var() / chosen.var()
                found["targets"] = target[replies.is_token]
                if s["whiten"]:
                    chosen = advantage[counted]
                    advantage = (advantage - chosen.mean()) / torch.sqrt(chosen.var() + 1e-8)
            else:
                scores = token_rewards.sum(1).view(len(groups), -1)
                advantage = group_advantages(s, scores).flatten()[:, None].expand(q.shape)
            advantage = run.carried(advantage)
            found["advantages"] = advantage[counted]

        size = math.ceil(len(groups) / s["minibatches"])
        chunks = [range(i, min(i + size, len(groups))) for i in range(0, len(groups), size)]
        samples = by_group.shape[1]
        statistics, norms, critic_norms, ratio_max, passes = [], [], [], 0.0, 0
        rate, critic_rate = (s[key] * factor(s, u) for key in ("learning_rate", "critic_learning_rate"))
        for _ in range(s["epochs"]):
            moved = []
            for chunk in chunks:
                part = slice(chunk.start * samples, chunk.stop * samples)
                if not is_live[part].any():
                    continue
                some = of_groups(groups[chunk.start : chunk.stop])
                cut = lambda x: x[part, : some.is_token.shape[1]]
                w = run.carried(weights(s, some, is_live[part]).to(run.dtype))
                p, entropy = self.actor.scores(some, self.temperature)
                policy, clipped, l, ratio = policy_terms(run, s, p, cut(behaviour), cut(advantage), some, cut(counted))
                divergence = kl(s["kl_estimator"], p, cut(q))
                token = policy - s["entropy_coefficient"] * entropy
                if s["kl_in"] == "loss":
                    token = token + s["kl_coefficient"] * ratio.detach() * divergence
                total = lambda x: (torch.where(cut(counted), x, 0) * w).sum()
                mean = lambda x: (total(x) / w.sum()).detach()
                figures = dict(
                    loss=total(token).detach(), policy_loss=total(policy).detach(), kl=mean(divergence), entropy=mean(entropy),
                    clip_fraction=mean(clipped.to(run.dtype)), approx_kl=mean(ratio - 1 - l),
                )
                moved.append(figures["approx_kl"])
                ratio_max = max(ratio_max, ratio[cut(counted)].max().item())
                is_trained = u >= s["critic_warmup"] or not self.critic
                norms.append(step(run, s, self.actor_optimizer, total(token), rate, is_trained))
                figures["grad_norm"] = norms[-1]
                if self.critic:
                    v, before, goal = self.critic.values(some), cut(old), cut(target)
                    error = (v - goal) ** 2
                    if s["value_clip"] > 0:
                        held = (torch.clamp(v, before - s["value_clip"], before + s["value_clip"]) - goal) ** 2
                        run.near((v - before).detach().abs() - s["value_clip"], cut(counted))
                        run.near((error - held).detach(), cut(counted) & ((v - before).abs() > s["value_clip"]))
                        error = larger(error, held)
                    loss = total(0.5 * error)
                    figures["value_loss"] = mean(0.5 * error)
                    critic_norms.append(step(run, s, self.critic_optimizer, loss, critic_rate))
                statistics.append(figures)
            passes += 1
            if s["target_kl"] > 0:
                beyond = sum(moved) / len(moved) - s["target_kl"]
                run.near(beyond, torch.tensor(True))
                if beyond > 0:
                    break
        found |= {key: torch.stack([x[key] for x in statistics]).mean() for key in statistics[0]}
        found |= dict(passes=torch.tensor(float(passes)), ratio_max=torch.tensor(ratio_max), grad_norms=torch.stack(norms))
        found["losses"] = torch.stack([x["loss"] for x in statistics])
        found["factor"] = torch.tensor(factor(s, u), dtype=torch.float64)
        if critic_norms:
            found["critic_grad_norms"] = torch.stack(critic_norms)
        for who, policy in ("actor", self.actor), ("critic", self.critic):
            if policy:
                found |= {f"{who}.{short(name)}": projections(change) for name, change in policy.changes().items()}
        return {name: value.double().flatten().tolist() for name, value in found.items()}


def numbers(settings):
    """A setting is an f32 number."""
    return {key: np.float32(x).item() if isinstance(x, float) else x for key, x in settings.items()}


def short(name):
    return name.removeprefix("model.layers.").removesuffix(".weight")


def projections(change):
    """Sums over the elements, in order, by weights from -1 to 1."""
    index = np.arange(1, change.numel() + 1, dtype=np.uint64)
    weights = [(index * np.uint64(m) % np.uint64(2**32)).astype(np.float64) / 2.0**31 - 1 for m in PROJECTIONS]
    return torch.tensor(np.stack(weights)) @ change.flatten()


def draw_round(case, number, actor, random):
    """Prompts, replies and rewards by chance; a behaviour near the policy."""
    s, vocab = case["settings"], actor.model.config.vocab_size
    draw = lambda n: random.integers(2, vocab, n).tolist()
    longest = case["max_tokens"]
    groups, rewards, truncated = [], [], []
    for g in range(s["states"]):
        lengths = [int(n) for n in random.integers(1, longest + 1, s["samples"])]
        is_truncated = [False] * s["samples"]
        for i in range(s["samples"]):
            if case["truncated"] and (i == g % s["samples"] or g == 0):
                lengths[i] = longest
                is_truncated[i] = g != 1  # that one stopped by itself
        groups.append(dict(prompt=draw(int(random.integers(1, 7))), replies=[draw(n) for n in lengths]))
        earned = (random.integers(-8, 9, s["samples"]) / 8).tolist()
        while len(set(earned)) < 2:
            earned = (random.integers(-8, 9, s["samples"]) / 8).tolist()
        rewards += earned[:1] * len(earned) if (number, g) in case["dead"] else earned
        truncated += is_truncated
    replies = of_groups(groups)
    with torch.no_grad():
        p = actor.scores(replies, np.float32(case["temperature"]).item())[0].numpy()
    b = np.minimum(p + case["spread"] * random.standard_normal(p.shape), -(2.0**-10)).astype(np.float32)
    behaviour = [[float(str(x)) for x in row[:n]] for row, n in zip(b, replies.lengths.tolist())]
    return dict(groups=groups, rewards=rewards, truncated=truncated, behaviour=behaviour)


def run_case(case, run, random=None, rounds=None):
    """Quantities of every round, and the rounds, which the first run draws."""
    rounds, found = list(rounds or []), {}
    learner = Learner(run, case)
    with run.mode:
        for u in range(case["rounds"]):
            if random is not None:
                rounds.append(draw_round(case, u, learner.actor, random))
            round = rounds[u]
            # As the Rust program reads it: the f32 nearest to what is written.
            round = round | dict(behaviour=[np.float32(row).astype(np.float64).tolist() for row in round["behaviour"]])
            found |= {f"{u}.{name}": value for name, value in learner.update(u, round).items()}
    return found, rounds


def is_tensor(key):
    return key.split(".")[1] in ("actor", "critic")


def error(key, exact, found):
    largest = max(map(abs, exact))
    if largest == 0 or not is_tensor(key):
        largest = max(largest, 1.0)
    return max(abs(a - b) for a, b in zip(exact, found)) / largest


def largest_error(key, exact, runs):
    return float(f"{max(error(key, exact, found[key]) for found in runs):.1e}")


def make(name, models):
    case = CASES[name] | dict(folder=models / CASES[name]["model"])
    for seed in range(100):
        run = Run()
        exact, rounds = run_case(case, run, np.random.default_rng([seed, len(name)]))
        if run.margin > 1e-4:
            break
    assert run.margin > 1e-4, name
    host = [run_case(case, Run(noise=torch.Generator().manual_seed(i)), rounds=rounds)[0] for i in range(HOST_RUNS)]
    narrow = [
        run_case(case, Run(torch.float32, attention, order), rounds=rounds)[0]
        for attention in ("sdpa", "eager") for order in (None, *range(1, ORDERS))
    ]
    quantities = {
        key: [[float(f"{x:.12g}") for x in value], largest_error(key, value, host), largest_error(key, value, narrow)]
        for key, value in exact.items()
    }
    shown = ["passes", "clip_fraction", "approx_kl", "ratio_max", "grad_norm", "dead_share"]
    print(name, seed, *(f"{key} {exact[f'{u}.{key}'][0]:.3g}" for u in range(case["rounds"]) for key in shown), flush=True)
    worst = [max((q[kind], key) for key, q in quantities.items()) for kind in (1, 2)]
    print("   ", worst, flush=True)
    kept = {key: case[key] for key in ("model", "temperature", "max_tokens", "settings")}
    return dict(name=name, **kept, rounds=rounds, quantities=quantities)


def main():
    torch.set_num_threads(1)
    out, models, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    cases = [make(name, models) for name in CASES if not names or name in names]
    out.write_text("[\n" + ",\n".join(map(lambda case: json.dumps(case, separators=(",", ":")), cases)) + "\n]\n")


main()
