"""Makes losses.json: the losses, advantages, schedules and AdamW steps of reinforcement learning in plain PyTorch, in f64 with
autograd, and by how much the same code in f32 is off.

    python losses.py [OUT]        (torch 2.11, transformers 5.23, trl 1.16; its GRPO trainer imports pandas 3.1 and datasets 5.2, these dill, multiprocess,
                                   xxhash, aiohttp and python-dateutil)

The formulas are written down here from their papers: PPO arXiv 1707.06347 eq. 7, dual clip 1912.09729 eq. 5, GAE 1506.02438 eq. 16,
CISPO 2506.13585 eq. 4, 5, GSPO 2507.18071 (against TRL), GRPO 2402.03300 eq. 3, leave-one-out 2402.14740, batch deviation 2508.08221, its averages 2503.20783 (Dr. GRPO) and 2503.14476 (DAPO), the KL estimators of J. Schulman's note
"Approximating KL Divergence", the clipped value loss of OpenAI's PPO2, AdamW 1711.05101. Where TRL has a formula as code
(GRPOTrainer._compute_loss), its loss and gradient must equal ours here before anything is written. transformers' schedules and
torch.optim.AdamW are called, not written down.
"""
import json
import sys
import types

import numpy as np
import torch
import transformers

OUT = sys.argv[1] if len(sys.argv) > 1 else __file__.replace(".py", ".json")
F64, F32 = torch.float64, torch.float32
random = np.random.RandomState(7)


def f32(x):
    """The nearest f32: what a setting or an input is in the Rust code."""
    return np.asarray(x, np.float32).astype(np.float64)


def smaller(a, b):
    """min; the gradient of a tie is a's (torch.minimum halves it)."""
    return torch.where(b < a, b, a)


def larger(a, b):
    return torch.where(b > a, b, a)


MOST = 20.0  # log ratios and differences are held within this


def kl(estimator, logp, reference):
    d = torch.clamp(logp - reference, -MOST, MOST)
    return {"k1": d, "k2": d * d / 2, "k3": torch.exp(-d) - 1 + d}[estimator]


def policy_loss(p, x):
    """Every statistic of one call, as weighted sums; x are tensors (M)."""
    logp, weight, advantage = x["logp"], x["weight"], x["advantage"]
    moved = torch.clamp(logp - x["behaviour"], -MOST, MOST)
    ratio = torch.exp(moved)
    within = torch.clamp(ratio, 1 - p["clip_low"], 1 + p["clip_high"])
    if p["surrogate"] == "cispo":
        objective = within.detach() * advantage * logp
        plain, was_clipped = objective, within != ratio
    else:
        plain, clipped = ratio * advantage, within * advantage
        objective = smaller(plain, clipped)
        was_clipped = clipped < plain
        if p["dual_clip"] is not None:
            floor = p["dual_clip"] * advantage
            objective = torch.where((advantage < 0) & (objective < floor), floor, objective)
    divergence = kl(p["kl_estimator"], logp, x["reference"])
    sums = dict(
        policy_loss=(-objective * weight).sum(),
        kl=(divergence * weight).sum(),
        entropy=(x["entropy"] * weight).sum(),
        clip_fraction=(was_clipped.to(logp.dtype) * weight).sum(),
        approx_kl=((ratio - 1 - moved) * weight).sum(),
        ratio_max=torch.where(weight > 0, ratio, torch.zeros_like(ratio)).max(),
    )
    kl_term = ratio.detach() * divergence
    sums["loss"] = sums["policy_loss"] + p["kl_coefficient"] * (kl_term * weight).sum() - p["entropy_coefficient"] * sums["entropy"]
    # The largest magnitude that is added up in each sum: what its rounding is relative to.
    largest = lambda *terms: max(float((t * weight).detach().abs().max()) for t in terms)
    scales = dict(policy_loss=largest(plain, objective), kl=largest(divergence, torch.ones_like(logp), moved * 0 + logp - x["reference"]),
                  entropy=largest(x["entropy"]), clip_fraction=largest(torch.ones_like(logp)), approx_kl=largest(ratio, moved, torch.ones_like(logp)),
                  ratio_max=float(ratio.max()))
    scales["loss"] = max(scales["policy_loss"], p["kl_coefficient"] * max(scales["kl"], largest(kl_term)), p["entropy_coefficient"] * scales["entropy"])
    return sums, scales


def run_policy(p, inputs, dtype):
    x = {k: torch.tensor(v, dtype=dtype) for k, v in inputs.items()}
    x["logp"].requires_grad_()
    x["entropy"].requires_grad_()
    sums, scales = policy_loss(p, x)
    sums["loss"].backward()
    out = {k: [v.item()] for k, v in sums.items()}
    out["dlogp"] = x["logp"].grad.double().tolist()
    out["dentropy"] = x["entropy"].grad.double().tolist()
    return out, scales


def compare(exact, rounded, scales):
    """name -> value, scale, f32: the f64 values, their largest magnitude, and the largest error of f32, in units of it."""
    result = {}
    for name, value in exact.items():
        scale = max(scales.get(name, 0.0), max((abs(v) for v in value), default=0.0))
        off = max((abs(a - b) for a, b in zip(value, rounded[name])), default=0.0)
        assert np.isfinite(value).all() and np.isfinite(off), name
        result[name] = dict(value=value, scale=scale, f32=off / scale if scale else 0.0)
    return result


policy = []


def add_policy(name, inputs, lengths=None, **p):
    p = dict(surrogate="clip", clip_low=0.2, clip_high=0.2, dual_clip=None, kl_coefficient=0.0, kl_estimator="k1", entropy_coefficient=0.0) | p
    p = {k: float(f32(v)) if isinstance(v, float) else v for k, v in p.items()}
    inputs = {k: f32(v).tolist() for k, v in inputs.items()}
    exact, scales = run_policy(p, inputs, F64)
    rounded, _ = run_policy(p, inputs, F32)
    policy.append(dict(name=name, params=p, inputs=inputs, outputs=compare(exact, rounded, scales)))
    return exact


def tokens(n, spread=0.3):
    behaviour = -random.exponential(1.5, n)
    return dict(logp=behaviour + spread * random.randn(n), entropy=random.rand(n) * 3, behaviour=behaviour,
                reference=behaviour + 0.2 * random.randn(n), advantage=random.randn(n), weight=np.full(n, 1 / n))


everything = dict(kl_coefficient=0.05, entropy_coefficient=0.01)
for estimator in ["k1", "k2", "k3"]:
    for dual in [None, 3.0]:
        add_policy(f"{estimator}, dual clip {dual}", tokens(48, 0.8), kl_estimator=estimator, dual_clip=dual, **everything)
for estimator in ["k2", "k3"]:
    add_policy(f"cispo, {estimator}", tokens(48, 0.8), surrogate="cispo", clip_low=0.3, clip_high=0.4, kl_estimator=estimator, **everything)
add_policy("a single token", tokens(1), kl_estimator="k3", **everything)
add_policy("clip-higher (DAPO): two bounds", tokens(32, 0.5), clip_low=0.2, clip_high=0.28)
# Ratios just inside and outside of both bounds, with advantages of both signs and 0.
bounds = np.log(np.repeat([0.8, 1.2, 3.0], 2) * np.tile([1 - 1e-4, 1 + 1e-4], 3))
edge = np.repeat(bounds, 3)
edges = tokens(len(edge)) | dict(behaviour=np.zeros(len(edge)), logp=edge, advantage=np.tile([1.0, -1.0, 0.0], len(bounds)))
add_policy("ratios beside the bounds", edges, dual_clip=3.0, **everything)
# With clip 0 the bound is 1, a ratio that is exact in every precision: exactly at the bound the gradient is the plain one.
at_bound = tokens(6) | dict(behaviour=-np.ones(6), logp=-np.ones(6), advantage=[1, -1, 0, 2, -2, 0.5])
add_policy("ratios exactly at the bound", at_bound, clip_low=0.0, clip_high=0.0, dual_clip=2.0)
# On both sides of where log ratios are held; masked tokens are those of weight 0.
far = np.asarray([60.0, -60.0, 30.0, -30.0, 0.0, 1e-6])
extreme = tokens(24)
extreme["behaviour"] = np.full(24, -70.0)
extreme["logp"] = np.tile(far, 4) - 70
extreme["reference"] = np.full(24, -70.0) + np.repeat([0.5, -0.5], 12)
for estimator in ["k1", "k2", "k3"]:
    add_policy(f"extreme ratios, {estimator}", extreme, kl_estimator=estimator, dual_clip=3.0, kl_coefficient=0.05)
add_policy("extreme ratios without dual clip", extreme)
masked = tokens(40, 0.6)
masked["weight"] = np.where(random.rand(40) < 0.5, 0, 1 / 16)
add_policy("masked tokens", masked, kl_estimator="k3", **everything)

# Averages over replies of different lengths: weights of the tokens of replies one after the other.
averages = []
for lengths in [[1], [1, 1, 1], [5, 1, 9, 3], [64, 2]]:
    for scale in [8.0, 1.0]:
        n = sum(lengths)
        loss = torch.ones(n, dtype=F64, requires_grad=True)
        replies = loss.split(lengths)
        for name, value in dict(
            token=loss.mean(),
            sample=torch.stack([r.sum() / scale for r in replies]).mean(),
            reply=torch.stack([r.mean() for r in replies]).mean(),
        ).items():
            averages.append(dict(average=name, lengths=lengths, reply_scale=scale,
                                 weights=torch.autograd.grad(value, loss, retain_graph=True)[0].tolist()))


def check_against_trl():
    """GRPOTrainer._compute_loss on a padded batch, called with a stand-in for the trainer: its loss and gradient by log-probability
    equal our transcription with the weights of the averages above. TRL's KL term is not weighed by the ratio: it is compared where the
    ratio is 1. Its CISPO clips above only, at epsilon_high itself."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    lengths, scale = [5, 1, 9, 3], 8.0
    n, longest = sum(lengths), max(lengths)
    per_reply = torch.tensor(random.randn(len(lengths)))
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    spread = lambda flat: torch.zeros(mask.shape, dtype=F64).masked_scatter(mask.bool(), flat)
    first = dict(clip_low=0.2, clip_high=0.28, dual_clip=None, kl_coefficient=0.05, kl_estimator="k3", entropy_coefficient=0.0, surrogate="clip")
    later, cispo = dict(first, kl_coefficient=0.0), dict(first, kl_coefficient=0.0, surrogate="cispo", clip_low=1.0, clip_high=0.5)
    collected = __import__("collections").defaultdict(lambda: __import__("collections").defaultdict(list))
    for loss_type, average, p, level in [
        ("bnpo", "token", first, "token"), ("dr_grpo", "sample", first, "token"), ("grpo", "reply", first, "token"), ("dapo", "token", first, "token"),
        ("bnpo", "token", later, "token"), ("dr_grpo", "sample", later, "token"), ("grpo", "reply", later, "token"),
        ("cispo", "token", cispo, "token"), ("grpo", "reply", later, "sequence"),
    ]:
        x = {k: torch.tensor(f32(v)) for k, v in tokens(n, 0.0 if p is first else 0.6).items()}
        x["advantage"] = per_reply.repeat_interleave(torch.tensor(lengths))
        weights = next(a["weights"] for a in averages if (a["average"], a["lengths"], a["reply_scale"]) == (average, lengths, scale))
        ours = dict(x, weight=torch.tensor(weights, dtype=F64), logp=x["logp"].clone().requires_grad_())
        if level == "sequence":
            # GSPO: the behaviour below each token's log-probability by the reply's mean log ratio, without a gradient.
            means = [d.mean() for d in (x["logp"] - x["behaviour"]).split(lengths)]
            ours["behaviour"] = x["logp"] - torch.stack(means).repeat_interleave(torch.tensor(lengths))
        loss = policy_loss(p, ours)[0]["loss"]
        loss.backward()
        logp = spread(x["logp"]).requires_grad_()
        gather = lambda t: t
        trainer = types.SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *a, **k: (logp, spread(x["entropy"]), None), aux_loss_enabled=False,
            top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=level, beta=p["kl_coefficient"],
            args=types.SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1), loss_type=loss_type,
            epsilon_low=p["clip_low"], epsilon_high=p["clip_high"] + (1 if loss_type == "cispo" else 0), use_vllm=False,
            model=types.SimpleNamespace(training=True),
            current_gradient_accumulation_steps=1, max_completion_length=int(scale), _entropy_bonus_enabled=False, _metrics=collected,
            accelerator=types.SimpleNamespace(gather=gather, num_processes=1, reduce=lambda t, reduction: t), vllm_importance_sampling_correction=False,
            use_adaptive_entropy=False,
        )
        batch = dict(prompt_ids=mask[:, :1], prompt_mask=mask[:, :1], completion_ids=mask, completion_mask=mask, advantages=per_reply,
                     old_per_token_logps=spread(x["behaviour"]), ref_per_token_logps=spread(x["reference"]),
                     num_items_in_batch=torch.tensor(float(n)))
        theirs = GRPOTrainer._compute_loss(trainer, None, batch)
        theirs.backward()
        assert abs(theirs.item() - loss.item()) < 1e-12, (loss_type, level, theirs.item(), loss.item())
        difference = logp.grad[mask.bool()] - ours["logp"].grad
        if level == "sequence":
            # A reply's gradient is one number for all its tokens: TRL's through the mean, the token form's through each.
            difference = torch.stack([d.sum() for d in difference.split(lengths)])
        assert difference.abs().max() < 1e-12, (loss_type, level)
        print(f"equal to TRL's {loss_type}, {level} level, KL {p['kl_coefficient']}")


def run_value(clip, inputs, dtype):
    x = {k: torch.tensor(v, dtype=dtype) for k, v in inputs.items()}
    value = x["value"].requires_grad_()
    plain = (value - x["target"]) ** 2
    if clip is not None:
        bounded = x["old_value"] + torch.clamp(value - x["old_value"], -clip, clip)
        plain = larger(plain, (bounded - x["target"]) ** 2)
    loss = (0.5 * plain * x["weight"]).sum()
    loss.backward()
    return dict(loss=[loss.item()], dvalue=value.grad.double().tolist())


values = []
for name, clip, n in [("plain", None, 32), ("clipped", 0.5, 64), ("a single token", 0.5, 1)]:
    old = random.randn(n)
    inputs = dict(value=old + random.randn(n) * 0.7, old_value=old, target=old + random.randn(n), weight=np.full(n, 1 / n))
    if name == "clipped":
        # Exactly at the bound, at a tie of both errors (the plain one has the gradient), and no error at all.
        for i, row in enumerate([(0.5, 0.0, 2.0), (-0.5, 0.0, 2.0), (1.0, 0.0, 0.75), (-1.0, 0.0, -0.75), (0.25, 0.0, 0.25)]):
            inputs["value"][i], inputs["old_value"][i], inputs["target"][i] = row
        inputs["weight"][40:] = 0
    inputs = {k: f32(v).tolist() for k, v in inputs.items()}
    values.append(dict(name=name, clip=clip, inputs=inputs, outputs=compare(run_value(clip, inputs, F64), run_value(clip, inputs, F32), {})))


def gae(rewards, value, gamma, lam):
    advantage, running = [None] * len(rewards), torch.zeros((), dtype=rewards.dtype)
    for t in reversed(range(len(rewards))):
        following = value[t + 1] if t + 1 < len(rewards) else torch.zeros((), dtype=rewards.dtype)
        delta = rewards[t] + gamma * following - value[t]
        running = delta + gamma * lam * running
        advantage[t] = running
    advantage = torch.stack(advantage)
    return dict(advantages=advantage.double().tolist(), targets=(advantage + value).double().tolist())


def whiten(x):
    return dict(whitened=((x - x.mean()) / torch.sqrt(x.var(unbiased=True) + 1e-8)).double().tolist())


def groups(scores, size, baseline, deviation, epsilon):
    table = scores.view(-1, size)
    if baseline == "mean":
        centred = table - table.mean(1, keepdim=True)
    else:
        others = [torch.cat([table[:, :i], table[:, i + 1:]], 1).mean(1) for i in range(size)]
        centred = table - torch.stack(others, 1)
    divisor = dict(group=table.std(1, keepdim=True) + epsilon, batch=scores.std() + epsilon, none=torch.ones((), dtype=scores.dtype))[deviation]
    return dict(advantages=(centred / divisor).flatten().double().tolist())


def both(function, *tensors, **settings):
    exact, rounded = (function(*[torch.tensor(f32(t), dtype=d) for t in tensors], **settings) for d in (F64, F32))
    return compare(exact, rounded, {})


advantages = dict(gae=[], whiten=[], groups=[])
for n, gamma, lam in [(1, 1.0, 1.0), (40, 1.0, 1.0), (40, 0.99, 0.95), (17, 0.5, 0.0), (200, 0.999, 1.0)]:
    gamma, lam = float(f32(gamma)), float(f32(lam))
    rewards, value = f32(random.randn(n) * (random.rand(n) < 0.3)), f32(random.randn(n))
    advantages["gae"].append(dict(rewards=rewards.tolist(), values=value.tolist(), gamma=gamma, lam=lam,
                                  outputs=both(gae, rewards, value, gamma=gamma, lam=lam)))
for x in [random.randn(64), random.randn(500) * 1e-3 + 5, np.asarray([1.0, -1.0]), np.full(7, 0.25)]:
    x = f32(x)
    advantages["whiten"].append(dict(values=x.tolist(), outputs=both(whiten, x)))
for size in [2, 8]:
    for baseline, deviation in [("mean", "group"), ("mean", "none"), ("mean", "batch"), ("leave_one_out", "none"), ("leave_one_out", "batch")]:
        scores = f32(np.concatenate([random.randn(3 * size), np.full(size, 0.5)]))
        case = dict(size=size, baseline=baseline, deviation=deviation, epsilon=float(f32(0.02)))
        advantages["groups"].append(dict(scores=scores.tolist(), **case, outputs=both(groups, scores, **case)))

schedules = []
parameter = [torch.nn.Parameter(torch.zeros(1))]
for kind, warmup, total, floor in [("cosine", 0, 10, 0.0), ("cosine", 3, 20, 0.0), ("cosine", 5, 50, 0.1), ("cosine", 0, 1, 0.0), ("linear", 0, 10, 0.0), ("linear", 4, 12, 0.0)]:
    # Our warm-up has no step of rate 0: it is theirs, one step longer and begun one step later.
    def factors(warmup, steps):
        optimizer = torch.optim.SGD(parameter, lr=1.0)
        if floor:
            make = transformers.get_cosine_with_min_lr_schedule_with_warmup
            schedule = make(optimizer, warmup, total, min_lr_rate=float(f32(floor)))
        elif kind == "linear":
            schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, total)
        else:
            schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, total)
        return [schedule.lr_lambdas[0](step) for step in range(steps)]

    schedules.append(dict(kind=kind, warmup=warmup, total=total, floor=float(f32(floor)), warming=factors(warmup + 1, warmup + 1)[1:],
                          then=factors(warmup, total + 1)[warmup:]))


def run_adamw(case, dtype):
    params = [torch.nn.Parameter(torch.tensor(p, dtype=dtype).view(s)) for p, s in zip(case["params"], case["shapes"])]
    split = [[p for p in params if (p.dim() > 1) == decays] for decays in (True, False)]
    decay = case["weight_decay"]
    optimizer = torch.optim.AdamW([dict(params=split[0], weight_decay=decay), dict(params=split[1], weight_decay=0.0)],
                                  lr=case["lr"], betas=(case["beta1"], case["beta2"]), eps=case["eps"], foreach=False)
    norms = []
    for grads in case["grads"]:
        grads = [torch.tensor(g, dtype=F64) for g in grads]
        norm = float(torch.sqrt(sum((g * g).sum() for g in grads)))
        norms.append(norm)
        # As torch.nn.utils.clip_grad_norm_, but for the factor, which is an f32 number.
        factor = float(f32(min(1.0, case["max_norm"] / (norm + 1e-6))))
        for p, g in zip(params, grads):
            p.grad = (g.to(dtype) * factor).view_as(p)
        optimizer.step()
    state = [optimizer.state[p] for p in params]
    flat = lambda name, tensors: {f"{name}{i}": t.detach().double().flatten().tolist() for i, t in enumerate(tensors)}
    return flat("p", params) | flat("m", [s["exp_avg"] for s in state]) | flat("v", [s["exp_avg_sq"] for s in state]), norms


adamw = []
for steps, decay, max_norm, size, beta2 in [(1, 0.0, 1e9, 1.0, 0.95), (6, 0.1, 1.0, 1.0, 0.95), (30, 0.01, 0.5, 10.0, 0.95), (3, 0.1, 1.0, 1e-6, 0.999)]:
    shapes = [[3, 5], [7], [2, 2]]
    draw = lambda scale: [f32(random.randn(int(np.prod(s))) * scale).tolist() for s in shapes]
    case = dict(shapes=shapes, params=draw(1.0), grads=[draw(size) for _ in range(steps)], lr=float(f32(1e-2)), beta1=float(f32(0.9)),
                beta2=float(f32(beta2)), eps=float(f32(1e-8)), weight_decay=float(f32(decay)), max_norm=float(f32(max_norm)))
    (exact, norms), (rounded, _) = run_adamw(case, F64), run_adamw(case, F32)
    adamw.append(case | dict(norms=norms, outputs=compare(exact, rounded, {})))

check_against_trl()
with open(OUT, "w") as f:
    json.dump(dict(policy=policy, averages=averages, values=values, advantages=advantages, schedules=schedules, adamw=adamw), f)
    f.write("\n")
