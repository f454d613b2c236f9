"""PyTorch, Liger, flash-attn, PEFT and transformers at the shapes of `onestep bench`, a row of the same format each, appended to
--out as it is made. CUDA events, the cache flushed between repeats, random-normal inputs; a kernel that disagrees with plain f32
has no time. What is absent, or does not fit, is a row `not run: why`. It installs nothing and downloads nothing.

    python3 peers.py --out DIR/peers.jsonl [--only PATTERN] [--seconds N] [--ceilings TFLOPS,GBPS] [--quick] [--list]"""
import argparse
import importlib
import json
import math
import os
import subprocess
import sys
import time

# Qwen2.5-7B; --quick: tiny, to see that everything runs.
FULL = dict(name="qwen2.5-7b", C=3584, L=28, NH=28, NKV=4, HS=128, F=18944, V=152064, T=4096, LONG=16384, R=16,
            BATCHES=(1, 64, 256), CONTEXTS=(4096, 1024), N=8192, FLUSH=256 << 20)
TINY = dict(name="tiny", C=64, L=2, NH=2, NKV=1, HS=64, F=96, V=96, T=24, LONG=40, R=4,
            BATCHES=(1, 2), CONTEXTS=(40, 20), N=64, FLUSH=1 << 20)
# A plain bf16 result at these small shapes is within a few units of 2^-8 of the largest magnitude.
TOLERANCE = 2.0 ** -5


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="peers.jsonl", help="file the rows are appended to")
    parser.add_argument("--only", default="", help="only rows whose suite/kernel/mode/shape/provider contains it")
    parser.add_argument("--seconds", type=float, default=480.0, help="rows that would begin later are not run")
    parser.add_argument("--ceilings", default="", help="TFLOP/s,GB/s measured before, for shares")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: shows that everything runs")
    parser.add_argument("--exact", action="store_true", help="--only is a row's whole name")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    args = parser.parse_args(argv)
    args.ceilings = [float(x) for x in args.ceilings.split(",")] if args.ceilings else None
    if args.ceilings is not None and len(args.ceilings) != 2:
        parser.error("--ceilings: expected two numbers, for example 790,4300")
    return args


def module(name):
    """A module that may be absent. Raises what the row then says."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotRun(f"{name.split('.')[0]} is not installed ({error})") from error


class NotRun(Exception):
    """Why a row has no figure."""


class Row:
    """What is to be measured: its names as `onestep bench` gives them, its cost, and `make(sizes, small)`: a pair (run, reference)
    of functions without arguments; reference() is the f32 result that run() is checked against, or None."""

    def __init__(self, suite, kernel, mode, shape, provider, make, flops=0.0, bytes_=0.0, tokens=0.0, checks=True, flush=True):
        self.suite, self.kernel, self.mode, self.shape, self.provider = suite, kernel, mode, shape, provider
        self.make, self.flops, self.bytes, self.tokens, self.checks, self.flush = make, flops, bytes_, tokens, checks, flush

    @property
    def name(self):
        return f"{self.suite}/{self.kernel}/{self.mode}/{self.shape}/{self.provider}"


def small(s):
    """Ragged shapes for the check."""
    return dict(s, C=264, F=328, V=515, T=77, LONG=77, NH=min(s["NH"], 4), NKV=min(s["NKV"], 2), N=136, BATCHES=(2, 3, 5), CONTEXTS=(65, 33))


def normal(*shape, scale=1.0, dtype=None, grad=False):
    import torch
    return (torch.randn(*shape, device="cuda") * scale).to(dtype or torch.bfloat16).requires_grad_(grad)


def backward(make_loss):
    """(run, None) that repeats the backward of one forward; the gradients are handed out, not accumulated."""
    import torch
    outputs, inputs, gradient = make_loss()
    return lambda: torch.autograd.grad(outputs, inputs, gradient, retain_graph=True)


def attention(mode, length, backend):
    def make(s):
        import torch
        import torch.nn.functional as F
        t = s[length]
        q = normal(1, s["NH"], t, s["HS"], grad=mode == "backward")
        k, v = (normal(1, s["NKV"], t, s["HS"], grad=mode == "backward") for _ in "kv")
        out_grad = normal(1, s["NH"], t, s["HS"])

        def plain(q, k, v):
            repeat = s["NH"] // s["NKV"]
            k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
            scores = (q @ k.transpose(-1, -2)) / math.sqrt(s["HS"])
            mask = torch.ones(t, t, dtype=torch.bool, device="cuda").triu(1)
            return scores.masked_fill(mask, float("-inf")).softmax(-1) @ v

        if backend == "flash-attn":
            flash = module("flash_attn")
            def forward():
                return flash.flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True).transpose(1, 2)
        else:
            from torch.nn.attention import SDPBackend, sdpa_kernel
            chosen = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[backend]
            def forward():
                with sdpa_kernel(chosen):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def reference():
            wide = [x.detach().float().requires_grad_(mode == "backward") for x in (q, k, v)]
            out = plain(*wide)
            return out if mode == "forward" else torch.autograd.grad(out, wide, out_grad.float())

        if mode == "forward":
            return forward, reference
        return backward(lambda: (forward(), (q, k, v), out_grad)), reference
    return make


def linear(mode, k_of, widths):
    def make(s):
        import torch
        t, k, r, parts = s["T"], k_of(s), s["R"], widths(s)
        x = normal(t, k, grad=mode == "backward")
        layers = [(normal(n, k, scale=0.02), normal(r, k, scale=0.02, grad=True), normal(n, r, scale=0.02, grad=True)) for n in parts]

        def run(x, layers):
            return torch.cat([x @ w.T + (x @ a.T) @ (2.0 * b).T for w, a, b in layers], 1)

        out_grad = normal(t, sum(parts))
        def reference():
            wide = x.detach().float().requires_grad_(mode == "backward")
            lists = [[p.detach().float().requires_grad_(p.requires_grad) for p in layer] for layer in layers]
            out = run(wide, lists)
            if mode == "forward":
                return out
            return torch.autograd.grad(out, [wide] + [p for _, a, b in lists for p in (a, b)], out_grad.float())

        if mode == "forward":
            def forward():
                with torch.no_grad():
                    return run(x, layers)
            return forward, reference
        return backward(lambda: (run(x, layers), [x] + [p for _, a, b in layers for p in (a, b)], out_grad)), reference
    return make


def logprob(mode, provider):
    def make(s):
        import torch
        import torch.nn.functional as F
        x, w = normal(s["T"], s["C"], grad=mode != "forward"), normal(s["V"], s["C"], scale=0.02)
        targets = torch.randint(0, s["V"], (s["T"],), device="cuda")

        def plain(x, w):
            return F.cross_entropy((x @ w.T).float(), targets, reduction="sum")

        def reference():
            wide = x.detach().float().requires_grad_(mode != "forward")
            loss = plain(wide, w.float())
            return loss if mode == "forward" else torch.autograd.grad(loss, wide)

        if provider == "liger":
            function = module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss(reduction="sum")
            def run():  # its forward computes the gradient too
                return torch.autograd.grad(function(w, x, targets), x)
            return run, reference
        if mode == "forward":
            def forward():
                with torch.no_grad():
                    return plain(x, w)
            return forward, reference
        return backward(lambda: (plain(x, w), x, None)), reference
    return make


def elementwise(kernel, mode, provider):
    """add_rmsnorm, swiglu and rope: compiled PyTorch, or Liger."""
    def make(s):
        import torch
        import torch.nn.functional as F
        grad = mode == "backward"
        if kernel == "add_rmsnorm":
            inputs = [normal(s["T"], s["C"], grad=grad), normal(s["T"], s["C"], grad=grad)]
            weight = normal(s["C"])
            def plain(residual, x):
                total = residual + x
                return total, F.rms_norm(total, (s["C"],), weight.to(total.dtype), 1e-6)
            if provider == "liger":
                function = module("liger_kernel.ops.rms_norm").LigerRMSNormFunction
                def chosen(residual, x):
                    total = residual + x
                    return total, function.apply(total, weight, 1e-6)
        elif kernel == "swiglu":
            inputs = [normal(s["T"], s["F"], grad=grad), normal(s["T"], s["F"], grad=grad)]
            def plain(gate, up):
                return F.silu(gate) * up
            if provider == "liger":
                chosen = module("liger_kernel.ops.swiglu").LigerSiLUMulFunction.apply
        else:
            inputs = [normal(s["T"], s["NH"] + s["NKV"], s["HS"], grad=grad)]
            angles = torch.arange(s["T"], device="cuda")[:, None] * 1e6 ** (-torch.arange(s["HS"] // 2, device="cuda") / (s["HS"] // 2))
            cos, sin = angles.cos()[:, None], angles.sin()[:, None]
            def plain(x):
                a, b = x.float().chunk(2, -1)
                return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)
            if provider == "liger":
                raise NotRun("the same work is not offered alone")
        if provider == "torch compiled":
            chosen = torch.compile(plain, dynamic=False)

        def reference():
            wide = [x.detach().float().requires_grad_(grad) for x in inputs]
            out = plain(*wide)
            return out if not grad else torch.autograd.grad(last(out), wide, out_grad.float())

        def last(out):
            return out[-1] if isinstance(out, tuple) else out

        if not grad:
            def forward():
                with torch.no_grad():
                    return chosen(*inputs)
            return forward, reference
        out = last(chosen(*inputs))
        out_grad = normal(*out.shape)
        return backward(lambda: (out, inputs, out_grad)), reference
    return make


def adapter_shapes(s):
    q, kv = s["NH"] * s["HS"], s["NKV"] * s["HS"]
    pairs = [(q, s["C"]), (kv, s["C"]), (kv, s["C"]), (s["C"], q), (s["F"], s["C"]), (s["F"], s["C"]), (s["C"], s["F"])]
    return [shape for _ in range(s["L"]) for n, k in pairs for shape in ((s["R"], k), (n, s["R"]))]


def adamw(s):
    import torch
    parameters = [torch.nn.Parameter(normal(*shape, dtype=torch.float32)) for shape in adapter_shapes(s)]
    for p in parameters:
        p.grad = torch.randn_like(p)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, fused=True)
    return optimizer.step, None


def sample(s):
    import torch
    logits = normal(s["BATCHES"][2 if len(s["BATCHES"]) > 2 else -1], s["V"], scale=2.0, dtype=torch.float32)
    return lambda: torch.multinomial(logits.softmax(-1), 1), None


def gemm(s):
    import torch
    a, b = normal(s["N"], s["N"]), normal(s["N"], s["N"])
    return lambda: a @ b.T, lambda: a.float() @ b.float().T


def logits(s):
    x, w = normal(s["BATCHES"][-1], s["C"]), normal(s["V"], s["C"], scale=0.02)
    return lambda: x @ w.T, lambda: x.float() @ w.float().T


def copy(s):
    import torch
    a = torch.randn(1 << (28 if s["FLUSH"] > 1 << 20 else 16), device="cuda")
    b = torch.empty_like(a)
    return lambda: b.copy_(a), lambda: a


def decode_attention(b, context):
    def make(s):
        import torch
        import torch.nn.functional as F
        q = normal(b, s["NH"], 1, s["HS"])
        k, v = (normal(b, s["NKV"], context, s["HS"]) for _ in "kv")
        def run():
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        def reference():
            repeat = s["NH"] // s["NKV"]
            wide_k, wide_v = k.float().repeat_interleave(repeat, 1), v.float().repeat_interleave(repeat, 1)
            return ((q.float() @ wide_k.transpose(-1, -2)) / math.sqrt(s["HS"])).softmax(-1) @ wide_v
        return run, reference
    return make


def hf_model(s, attention):
    import torch
    transformers = module("transformers")
    transformers.utils.logging.set_verbosity_error()
    config = transformers.Qwen2Config(
        vocab_size=s["V"], hidden_size=s["C"], intermediate_size=s["F"], num_hidden_layers=s["L"], num_attention_heads=s["NH"],
        num_key_value_heads=s["NKV"], max_position_embeddings=32768, rms_norm_eps=1e-6, tie_word_embeddings=False, use_cache=True)
    config.head_dim = s["HS"]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    finally:
        torch.set_default_dtype(before)


def own_lora(model, rank):
    """y += 2 (x A^T) B^T beside every linear layer of the blocks, in the type of the base."""
    import torch

    class Lora(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.a = torch.nn.Parameter(torch.empty(rank, base.in_features, device="cuda", dtype=base.weight.dtype).uniform_(-1, 1) / math.sqrt(base.in_features))
            self.b = torch.nn.Parameter(torch.zeros(base.out_features, rank, device="cuda", dtype=base.weight.dtype))

        def forward(self, x):
            return self.base(x) + 2.0 * ((x @ self.a.T) @ self.b.T)

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, torch.nn.Linear):
                    setattr(part, name, Lora(child))
    return model


MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def sft(provider, checkpointing):
    def make(s):
        import torch
        if "liger" in provider:
            module("liger_kernel.transformers").apply_liger_kernel_to_qwen2()
        model = hf_model(s, "flash_attention_2" if "flash-attn" in provider and module("flash_attn") else "sdpa")
        if "peft" in provider:
            peft = module("peft")
            config = peft.LoraConfig(r=s["R"], lora_alpha=2 * s["R"], target_modules=MODULES, lora_dropout=0.0)
            model = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
        else:
            model = own_lora(model, s["R"])
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
        ids = torch.randint(0, s["V"], (1, s["T"]), device="cuda")
        losses = []

        def step():
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())

        def verify():
            expected = math.log(s["V"]) + 0.5 * 0.02 ** 2 * s["C"]
            ok = abs(losses[0] - expected) < 0.5 and losses[-1] < losses[0]
            return ok, f"loss {losses[0]:.3f} (expected {expected:.3f}) to {losses[-1]:.3f} in {len(losses)} steps"
        return step, verify
    return make


def generate(b, context):
    """Seconds a decoded token: the difference between two lengths, so that the prefill falls out."""
    def make(s):
        import torch
        model = hf_model(s, "sdpa").eval()
        ids = torch.randint(0, s["V"], (b, context), device="cuda")
        mask = torch.ones_like(ids)
        few, many = 4, 20

        def run(new):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            with torch.inference_mode():
                out = model.generate(ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0, top_p=1.0, pad_token_id=0)
            torch.cuda.synchronize()
            assert out.shape[1] == context + new, f"{out.shape[1]} tokens, expected {context + new}"
            return time.perf_counter() - begin
        run(few)
        return lambda: (run(many) - run(few)) / (many - few), None
    return make


def rows(s):
    """Every row, most valuable first."""
    out = []
    add = lambda *a, **k: out.append(Row(*a, **k))
    heads = f"NH {s['NH']}, NKV {s['NKV']}, HS {s['HS']}"
    gemm_parameters = s["L"] * (s["C"] * (2 * s["NH"] * s["HS"] + 2 * s["NKV"] * s["HS"]) + 3 * s["C"] * s["F"]) + s["V"] * s["C"]
    t, r = s["T"], s["R"]
    adapter = sum(n * k for n, k in adapter_shapes(s))
    flops = t * (4.0 * gemm_parameters + 7.0 * t * s["HS"] * s["NH"] * s["L"] + 6.0 * adapter)
    shape = f"{s['name']}, packed {t}, R {r}"
    for provider in ("torch+peft+liger", "torch+peft", "torch+own lora", "torch+peft+flash-attn"):
        for checkpointing in (False, True):
            add("model", "lora sft", "full", shape, provider + (" (checkpointing)" if checkpointing else ""), sft(provider, checkpointing), flops=flops, tokens=t, flush=False)
    n = s["N"]
    add("ceiling", "gemm", "full", f"M N K {n}", "torch", gemm, flops=2.0 * n ** 3)
    add("ceiling", "copy", "full", "1024 MiB", "torch", copy, bytes_=2.0 * (1 << 30))
    for length in ("T", "LONG"):
        tt = s[length]
        for mode, factor in (("forward", 1.0), ("backward", 2.5)):
            for provider, backend in (("torch sdpa flash", "flash"), ("torch sdpa cudnn", "cudnn"), ("flash-attn", "flash-attn")):
                add("kernel", "attention", mode, f"T {tt}, {heads}", provider, attention(mode, length, backend), flops=factor * 2.0 * tt * tt * s["HS"] * s["NH"])
    head = 2.0 * t * s["C"] * s["V"]
    shape = f"M {t}, C {s['C']}, V {s['V']}"
    add("kernel", "linear_logprob", "forward", shape, "torch", logprob("forward", "torch"), flops=head)
    add("kernel", "linear_logprob", "backward", shape, "torch", logprob("backward", "torch"), flops=2.0 * head)
    add("kernel", "linear_logprob", "full", shape, "liger", logprob("full", "liger"), flops=3.0 * head)
    layers = (
        ("qkv", lambda s: s["C"], lambda s: [s["NH"] * s["HS"], s["NKV"] * s["HS"], s["NKV"] * s["HS"]]),
        ("o", lambda s: s["NH"] * s["HS"], lambda s: [s["C"]]),
        ("gate/up", lambda s: s["C"], lambda s: [s["F"], s["F"]]),
        ("down", lambda s: s["F"], lambda s: [s["C"]]),
    )
    for name, k_of, widths in layers:
        k, parts = k_of(s), widths(s)
        shape = f"{name}: T {t}, K {k}, N {sum(parts)}, R {r}"
        low = 2.0 * t * r * (k * len(parts) + sum(parts))
        for mode, factor in (("forward", 1.0), ("backward", 2.0)):
            add("kernel", "linear", mode, shape, "torch", linear(mode, k_of, widths), flops=2.0 * t * k * sum(parts) + factor * low)
    small_ops = (
        ("add_rmsnorm", f"T {t}, C {s['C']}", 8.0 * t * s["C"], 8.0 * t * s["C"]),
        ("swiglu", f"T {t}, F {s['F']}", 6.0 * t * s["F"], 10.0 * t * s["F"]),
        ("qk_norm_rope", f"T {t}, {heads}", 4.0 * t * (s["NH"] + s["NKV"]) * s["HS"], 4.0 * t * (s["NH"] + s["NKV"]) * s["HS"]),
    )
    for kernel, shape, forward_bytes, backward_bytes in small_ops:
        for mode, amount in (("forward", forward_bytes), ("backward", backward_bytes)):
            for provider in ("torch compiled", "liger"):
                add("kernel", kernel, mode, shape, provider, elementwise(kernel, mode, provider), bytes_=amount)
    shapes = adapter_shapes(s)
    add("kernel", "adamw", "full", f"{len(shapes)} tensors, {4e-6 * adapter:.1f} MB of parameters", "torch fused", adamw, bytes_=28.0 * adapter)
    for context in reversed(s["CONTEXTS"]):
        for b in s["BATCHES"]:
            amount = b * context * 4.0 * s["NKV"] * s["HS"]
            add("kernel", "attention_paged", "forward", f"B {b}, context {context}, {heads}", "torch sdpa, cache not paged", decode_attention(b, context), bytes_=amount)
    b = s["BATCHES"][-1]
    add("kernel", "sample", "forward", f"B {b}, V {s['V']}", "torch", sample, bytes_=4.0 * b * s["V"])
    add("kernel", "logits", "forward", f"B {b}, C {s['C']}, V {s['V']}", "torch", logits, flops=2.0 * b * s["C"] * s["V"])
    for context in s["CONTEXTS"]:
        for b in s["BATCHES"]:
            add("model", "decode", "full", f"{s['name']}, batch {b}, context {context}", "transformers generate", generate(b, context), tokens=b, flush=False)
    return out


def flat(value):
    import torch
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for part in value for x in flat(part)] if isinstance(value, (tuple, list)) else []


def check(row, s):
    """Largest error of any output at small shapes, by its largest magnitude."""
    import torch
    torch.manual_seed(1)
    run, reference = row.make(small(s))
    if reference is None:
        return None
    worst = 0.0
    for found, exact in zip(flat(run()), flat(reference()), strict=True):
        worst = max(worst, ((found.float() - exact.float()).abs().max() / exact.float().abs().max()).item())
    return worst


def quantile(values, q):
    values, at = sorted(values), q * (len(values) - 1)
    low, high = values[math.floor(at)], values[math.ceil(at)]
    return low + (high - low) * (at - math.floor(at))


def measure(row, run, flush):
    import torch

    def once():
        if flush is not None and row.flush:
            flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        answer = run()
        end.record()
        torch.cuda.synchronize()
        # A step that measured itself says so.
        return answer if isinstance(answer, float) else begin.elapsed_time(end) / 1e3

    if row.kernel == "decode":
        return [once() for _ in range(3)]
    budget = 6.0 if row.suite == "model" else 0.4
    estimate = [once() for _ in range(3)][-1]
    return [once() for _ in range(max(5, min(100, int(budget / max(estimate, 1e-9)))))]


def result(row, s, args, flush):
    import torch
    out = dict(suite=row.suite, kernel=row.kernel, provider=row.provider, mode=row.mode, shape=row.shape, dtype="bf16", status="", checked=False,
               error=None, allowance=None, median=None, p20=None, p80=None, repeats=None, tflops=None, gbps=None, floor=None,
               share_of_measured=None, share_of_datasheet=None, bar=None, bar_unit="", reached=None, tokens_per_second=None, memory_gb=None, note="")
    run = verify = None
    try:
        if row.suite != "model" and row.checks:
            out["error"] = check(row, s)
            out["allowance"] = TOLERANCE if out["error"] is not None else None
            if out["error"] is not None and not out["error"] <= TOLERANCE:
                out["status"] = f"wrong: off by {out['error']:.2e}"
                return out
        torch.manual_seed(0)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run, verify = row.make(s)
        times = measure(row, run, flush)
        out["checked"] = True
        if row.kernel == "lora sft":
            out["checked"], out["note"] = verify()
            if not out["checked"]:
                out["status"] = f"wrong: {out['note']}"
                return out
        median = quantile(times, 0.5)
        out |= dict(status="measured", median=median, p20=quantile(times, 0.2), p80=quantile(times, 0.8), repeats=len(times))
        for key, amount, unit in (("tflops", row.flops, 1e12), ("gbps", row.bytes, 1e9), ("tokens_per_second", row.tokens, 1.0)):
            if amount > 0:
                out[key] = amount / median / unit
        if args.ceilings and row.flops + row.bytes > 0:
            out["floor"] = max(row.flops / args.ceilings[0] / 1e12, row.bytes / args.ceilings[1] / 1e9)
            out["share_of_measured"] = out["floor"] / median
        if row.suite == "model":
            out["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    except NotRun as why:
        out["status"] = f"not run: {why}"
    except torch.cuda.OutOfMemoryError as error:
        out["status"] = f"not run: out of memory ({str(error).splitlines()[0][:160]})"
    except Exception as error:  # a peer that fails is a row, not the end of the run
        out["status"] = f"not run: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    finally:
        run = verify = None
        import gc
        gc.collect()
        torch.cuda.empty_cache()
    return out


def main(argv):
    args = parse(argv)
    s = TINY if args.quick else FULL
    chosen = [row for row in rows(s) if (args.only == row.name if args.exact else args.only in row.name)]
    if args.list:
        print("\n".join(row.name for row in chosen))
        return 0
    os.makedirs(os.path.dirname(os.path.abspath(args.out)), exist_ok=True)

    def write(out):
        with open(args.out, "a") as file:
            file.write(json.dumps(out) + "\n")
        figure = f"{out['median'] * 1e3:.3f} ms" if out.get("median") else out["status"]
        print(f"{out['kernel']:<16} {out['mode']:<9} {out['provider']:<28} {out['shape']:<44} {figure}", file=sys.stderr, flush=True)

    blank = dict(dtype="bf16", checked=False, median=None)
    def skip(why):
        for row in chosen:
            write(blank | dict(suite=row.suite, kernel=row.kernel, provider=row.provider, mode=row.mode, shape=row.shape, status=f"not run: {why}"))
        return 0

    try:
        import torch
    except ImportError as error:
        return skip(f"PyTorch is not installed ({error})")
    if not torch.cuda.is_available():
        return skip("PyTorch sees no GPU")
    torch.backends.cuda.matmul.allow_tf32 = False  # references are f32
    try:  # a backward is repeated, so its buffers are kept
        import torch._functorch.config
        torch._functorch.config.donated_buffer = False
    except (ImportError, AttributeError):
        pass
    begin = time.perf_counter()
    flush = torch.empty(s["FLUSH"] // 4, device="cuda")
    measured = set()
    for row in chosen:
        if time.perf_counter() - begin > args.seconds:
            write(blank | dict(suite=row.suite, kernel=row.kernel, provider=row.provider, mode=row.mode, shape=row.shape, status=f"not run: the {args.seconds:.0f} seconds were used up"))
            continue
        # Checkpointing only where the plain step does not fit.
        plain = row.name.removesuffix(" (checkpointing)")
        if plain != row.name and plain in measured:
            continue
        if row.suite == "model" and "liger" in row.provider and not args.exact:
            # Liger changes transformers for the whole process: it gets one of its own, which writes the row.
            command = [sys.executable, __file__, "--exact", "--only", row.name, "--out", args.out]
            command += ["--quick"] * args.quick
            command += ["--ceilings", ",".join(map(str, args.ceilings))] if args.ceilings else []
            lines = lambda: open(args.out).readlines() if os.path.exists(args.out) else []
            before = len(lines())
            code = subprocess.run(command, check=False).returncode
            if len(lines()) == before:
                write(blank | dict(suite=row.suite, kernel=row.kernel, provider=row.provider, mode=row.mode, shape=row.shape, status=f"not run: its process ended with {code}"))
            elif json.loads(lines()[-1])["median"] is not None:
                measured.add(row.name)
            continue
        out = result(row, s, args, flush)
        if out["median"] is not None:
            measured.add(row.name)
        write(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
