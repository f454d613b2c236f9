"""What transformers and PEFT say of a model folder: in f32 as they are, and in f64 with their own code read as if it said float64.

A quantity is a tensor by name: logits, logp, entropy, loss, grad.NAME; the same behind `adapter.`, with the folder's adapter; sft.loss,
sft.grad_norm, sft.NAME of some AdamW steps on that adapter, and full.NAME of such steps on all weights, where they are asked for.
"""
import contextlib
import json
import math
from pathlib import Path

import peft
import safetensors.torch
import torch
import transformers
from torch.overrides import TorchFunctionMode

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Exact(TorchFunctionMode):
    """Norms, softmax and rotary tables of transformers compute in float32 whatever the weights are: here float32 reads float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        wide = lambda x: torch.float64 if x is torch.float32 else x
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


def sequences(folder):
    """(ids, is_sampled) of every step of the folder's data.jsonl."""
    lines = map(json.loads, (Path(folder) / "data.jsonl").read_text().splitlines())
    return [(step["ids"], step["is_sampled"]) for line in lines for step in line["steps"]]


def open_model(folder, dtype, attention, adapter=None):
    """The stored numbers, to be computed with in `dtype`."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
    model = model.to(dtype).eval()
    if dtype is torch.float64:
        with Exact():
            for module in model.modules():
                if hasattr(module, "inv_freq"):
                    module.__init__(module.config)
    return model


def plain(name):
    """A parameter's name without what PEFT adds to it."""
    return name.removeprefix("base_model.model.").replace(".default.weight", ".weight")


def trained(model):
    return {plain(name): p for name, p in model.named_parameters() if p.requires_grad}


def scores(model, ids):
    """Logits (T, V), and of every token but the first its log-probability and its row's entropy (T - 1)."""
    logits = model(torch.tensor([ids])).logits[0]
    rows = torch.log_softmax(logits[:-1], -1)
    return logits, rows[torch.arange(len(ids) - 1), ids[1:]], -(rows.exp() * rows).sum(-1)


def token_loss(model, batch):
    """Mean loss of the sampled tokens of a batch, sequence by sequence, without padding or packing."""
    terms = [scores(model, ids)[1][torch.tensor(mask[1:])] for ids, mask in batch]
    return -torch.cat(terms).sum() / sum(map(len, terms))


def once(model, batch):
    """Scores, loss and every gradient."""
    found = {}
    with torch.no_grad():
        parts = zip(*(scores(model, ids) for ids, _ in batch))
        found.update({name: torch.cat(part) for name, part in zip(("logits", "logp", "entropy"), parts)})
    model.zero_grad()
    loss = token_loss(model, batch)
    loss.backward()
    found["loss"] = loss.detach()
    return found | {f"grad.{name}": p.grad for name, p in trained(model).items()}


def factor(step, settings):
    """OneStep's schedules: the warm-up begins above 0, as step + 1 of warmup + 1."""
    warmup, total = settings["warmup"], settings["steps"]
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.get("schedule") == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def tune(model, batch, settings):
    """Losses of AdamW steps on a whole batch, and what they trained."""
    parameters = trained(model)
    decays = [p for p in parameters.values() if p.dim() > 1]
    others = [p for p in parameters.values() if p.dim() < 2]
    groups = [{"params": decays, "weight_decay": settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=(0.9, 0.999), eps=1e-8)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step, settings))
    losses, norms = [], []
    for _ in range(settings["steps"]):
        optimizer.zero_grad()
        loss = token_loss(model, batch)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), settings["max_norm"]))
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
    found = {"loss": torch.stack(losses), "grad_norm": torch.stack(norms)}
    return found | {name: p.detach().clone() for name, p in parameters.items()}


# The axes of every weight, and of its adapter's A and B: C hidden, F MLP, V vocabulary, R rank, H a head's own.
WEIGHTS = {
    "embed_tokens": "VC", "lm_head": "VC", "norm": "C", "layernorm": "C", "q_norm": "H", "k_norm": "H", "q_proj": "HC", "k_proj": "HC",
    "v_proj": "HC", "o_proj": "CH", "gate_proj": "FC", "up_proj": "FC", "down_proj": "CF",
}


def axes(name):
    key = next(part for part in reversed(name.split(".")) if part.removeprefix("input_").removeprefix("post_attention_") in WEIGHTS)
    whole = WEIGHTS[key.removeprefix("input_").removeprefix("post_attention_")]
    if "lora_A" in name:
        return "R" + whole[1]
    if "lora_B" in name:
        return whole[0] + "R"
    return whole[0] if name.endswith("bias") else whole


def reordered(tensor, axes, orders):
    for dimension, axis in enumerate(axes):
        if axis in orders:
            tensor = tensor.index_select(dimension, orders[axis])
    return tensor


def draw_orders(model, generator):
    """A random order of every axis whose order means nothing."""
    config = model.config
    extents = {"C": config.hidden_size, "F": config.intermediate_size, "V": config.vocab_size}
    if hasattr(model, "peft_config"):
        extents["R"] = model.peft_config["default"].r
    return {axis: torch.randperm(n, generator=generator) for axis, n in extents.items()}


def quantities(folder, adapter, batch, settings, dtype, attention="sdpa", order=None):
    """Everything about a folder and its adapter, computed in `dtype`: name to tensor. With `order`, a seed, transformers sums channels
    in an order drawn from it; what is returned is in the folder's order."""
    found = {}
    for prefix, folder_of_adapter in ("", None), ("adapter.", adapter):
        model, orders = open_model(folder, dtype, attention, folder_of_adapter), {}
        if order is not None:
            orders = draw_orders(model, torch.Generator().manual_seed(order))
            for name, parameter in model.named_parameters():
                parameter.data = reordered(parameter.data, axes(name), orders)
        backs = {axis: order.argsort() for axis, order in orders.items()}
        back = backs.get("V", torch.arange(model.config.vocab_size))
        renamed = [(back[ids].tolist(), mask) for ids, mask in batch]
        with Exact() if dtype is torch.float64 else contextlib.nullcontext():
            part = {prefix + name: tensor for name, tensor in once(model, renamed).items()}
            if prefix or settings.get("full"):
                tuned = "sft." if prefix else "full."
                part |= {tuned + name: tensor for name, tensor in tune(model, renamed, settings).items()}
        for name, tensor in part.items():
            if name.endswith("logits"):
                tensor = reordered(tensor, "TV", backs)
            elif name.endswith((".weight", ".bias")):
                tensor = reordered(tensor, axes(name), backs)
            assert tensor.dtype is dtype
            found[name] = tensor
    return found


def error(exact, found):
    """The largest difference, as a share of the largest magnitude."""
    largest = exact.abs().max().item() or 1.0
    return (exact - found.double()).abs().max().item() / largest


def own_errors(exact, *arguments, orders=8):
    """transformers' own errors in f32. One run's error is luck, since sums in another order round otherwise: the largest of runs
    that mean the same, of its two attentions in some `orders` of the channels each. No less than 2^-24: so far off is the f32
    nearest to the exact value, and a run may hit that by luck."""
    runs = [(attention, order) for attention in ("sdpa", "eager") for order in (None, *range(1, orders))]
    errors = dict.fromkeys(exact, 2.0**-24)
    for attention, order in runs:
        found = quantities(*arguments, torch.float32, attention, order)
        errors = {name: max(errors[name], error(tensor, found[name])) for name, tensor in exact.items()}
    return errors
