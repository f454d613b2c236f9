"""Models that no test has seen: draws random configurations of every supported family, and compares what the program makes of them
with transformers and PEFT, by the bar of tests/reference.rs.

    python fresh.py --onestep target/release/onestep [--seed N] [--count N] [--keep FOLDER]

Seeds N, N + 1, ... draw one model each. Of each: `score` with and without an adapter that PEFT wrote; `sft` of that adapter and of all
weights; `export`. Prints a line a quantity; exits with 1 when one is above the bar.
"""
import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import safetensors.torch
import torch
import transformers

import folders
import peer

BAR = 2.0
ORDERS = 6
FAMILIES = {"qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}


def draw_rope(draw, positions):
    kind = draw.choice(["default", "linear", "llama3", "yarn"])
    rope = {"rope_type": kind, "rope_theta": draw.choice([1e4, 5e5, 1e6, 12345.0])}
    if kind == "default":
        return rope
    rope["factor"] = draw.choice([1.0, 2.0, 3.5, 4.0, 8.0, 32.0])
    original = max(4, int(positions / draw.choice([1, 2, 4, 8])))
    if kind == "llama3":
        low = draw.choice([0.5, 1.0, 2.0])
        rope |= {"low_freq_factor": low, "high_freq_factor": 4 * low, "original_max_position_embeddings": original}
    if kind == "yarn":
        if draw.random() < 0.8:
            rope["original_max_position_embeddings"] = original
        options = {"beta_fast": 16.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 0.9}
        rope |= {key: value for key, value in options.items() if draw.random() < 0.3}
        if draw.random() < 0.3:
            rope |= {"mscale": draw.choice([0.5, 1.0]), "mscale_all_dim": draw.choice([1.0, 2.0])}
    return rope


def draw_config(draw):
    family = draw.choice(list(FAMILIES))
    nkv, hs = draw.randint(1, 3), 2 * draw.randint(16, 64)
    nh = nkv * draw.choice([1, 2, 3, 4, 7])
    hidden = draw.randint(16, 200)
    if family == "llama":
        hidden = nh * max(1, hidden // nh)  # transformers asks for it
    positions = draw.randint(24, 160)
    more = {} if family == "qwen2" else {"attention_bias": draw.random() < 0.4}
    if family != "qwen3" and nh * hs <= 512 and draw.random() < 0.5:
        hidden = nh * hs  # and head_dim left out, as older files do
    else:
        more["head_dim"] = hs
    return FAMILIES[family](
        vocab_size=draw.randint(16, 400), hidden_size=hidden, num_attention_heads=nh, num_key_value_heads=nkv,
        intermediate_size=draw.randint(16, 300), num_hidden_layers=draw.randint(1, 3), tie_word_embeddings=draw.random() < 0.5,
        rope_parameters=draw_rope(draw, positions), max_position_embeddings=positions, rms_norm_eps=draw.choice([1e-5, 1e-6]),
        bos_token_id=0, eos_token_id=1, **more,
    )


def draw_training(draw):
    """AdamW moves an element by about the learning rate however small its gradient: where that is all but zero, rounding decides, and the
    errors of two programs compare by luck. Here gradients are clipped so far that AdamW's epsilon rules, and steps are as smooth as those
    of plain descent. (The ten steps of tests/reference.rs are of the usual kind.)"""
    return {
        "steps": draw.randint(1, 6), "warmup": draw.randint(0, 2), "learning_rate": 10 ** draw.uniform(-2, -0.5),
        "weight_decay": draw.choice([0.0, 0.1]), "max_norm": 10 ** draw.uniform(-10, -9),
        "schedule": draw.choice(["cosine", "constant"]), "full": True,
    }


def draw_folder(draw, seed, folder):
    """Writes model/, adapter/ and data.jsonl; returns the settings of its training and a description."""
    config, storage = draw_config(draw), draw.choice(list(folders.TYPES))
    model, shard_bytes = folder / "model", draw.choice([None, 40_000])
    folders.write_model(model, config, storage, seed, shard_bytes)
    layout = draw.choice(["new", "old", "old, type"])
    if layout != "new":
        folders.old_layout(model)
        path = model / "config.json"
        file = json.loads(path.read_text())
        if "head_dim" in file and config.model_type != "qwen3" and config.hidden_size == config.num_attention_heads * config.head_dim:
            del file["head_dim"]
        if layout == "old, type" and file["rope_scaling"]:
            file["rope_scaling"]["type"] = file["rope_scaling"].pop("rope_type")
        path.write_text(json.dumps(file))
    rslora, modules = draw.random() < 0.3, draw.sample(folders.MODULES, draw.randint(1, 7))
    rank, alpha = draw.randint(1, 16), draw.choice([1, 3, 8, 16])
    folders.write_adapter(folder / "adapter", model, seed, rank, alpha, rslora, modules)
    most = config.max_position_embeddings
    lengths = [draw.randint(2, most) for _ in range(draw.randint(0, 5))] + [most]
    sampled = len(lengths) + draw.randint(0, sum(lengths) - 2 * len(lengths))
    folders.write_data(model, config.vocab_size, lengths, sampled, seed)
    settings = draw_training(draw)
    heads = f"{config.num_attention_heads}/{config.num_key_value_heads} heads"
    return settings, ", ".join([
        config.model_type, storage, f"hidden {config.hidden_size}", heads, f"rope {config.rope_parameters['rope_type']}",
        f"layout {layout}", "sharded" if (model / "model.safetensors.index.json").exists() else "whole",
        "tied" if config.tie_word_embeddings else "untied", f"rank {rank}",
    ])


def run(onestep, *arguments):
    command = [onestep, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {ended.returncode}: {ended.stderr.strip()}")


def scored(onestep, folder, out, adapter):
    (out / "in.jsonl").write_text("".join(json.dumps({"ids": ids}) + "\n" for ids, _ in peer.sequences(folder)))
    more = ["--adapter", adapter] if adapter else []
    run(onestep, "score", "--model", folder, "--input", out / "in.jsonl", "--output", out / "out.jsonl", "--backend", "cpu", *more)
    lines = [json.loads(line) for line in (out / "out.jsonl").read_text().splitlines()]
    numbers = lambda key: torch.tensor([number for line in lines for number in line[key]], dtype=torch.float64)
    return {"logp": numbers("logprobs"), "entropy": numbers("entropies")}


def tuned(onestep, folder, out, settings, micro_tokens, adapter):
    """Log and result of `sft`: of the adapter, or of all weights (those of its last checkpoint, in f32)."""
    overrides = [f"{key}={settings[key]}" for key in ("warmup", "learning_rate", "weight_decay", "max_norm", "schedule")]
    overrides += [f"epochs={settings['steps']}", "validation_share=0", f"micro_tokens={micro_tokens}"]
    more = ["--adapter", adapter] if adapter else ["sft.full=true"]
    run(onestep, "sft", "--device", "cpu", "--model", folder, "--data", folder / "data.jsonl", "--out", out, *more, *overrides)
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {key: torch.tensor([record[key] for record in log], dtype=torch.float64) for key in ("loss", "grad_norm")}
    if adapter:
        tensors = safetensors.torch.load_file(out / "adapter" / "adapter_model.safetensors")
        return found | {peer.plain(name): tensor for name, tensor in tensors.items()}
    last = max((out / "checkpoints" / "sft").glob("step-*"))
    weights = safetensors.torch.load_file(last / "model" / "model.safetensors")
    published = safetensors.torch.load_file(out / "model" / "model.safetensors")
    base = safetensors.torch.load_file(next(iter(folder.glob("*.safetensors"))))
    stored = next(iter(base.values())).dtype
    for name, tensor in weights.items():
        assert published[name].dtype == stored, f"{name} is in {published[name].dtype}, the base's weights in {stored}"
        assert torch.equal(tensor.to(stored), published[name]), f"{name} is not the trained weight in {stored}"
    peer.open_model(out / "model", torch.float32, "sdpa")
    return found | weights


def merged(folder, adapter, dtype):
    """The weights with the adapter folded in by PEFT, computed in `dtype`."""
    model = peer.open_model(folder, dtype, "sdpa", adapter).merge_and_unload()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def exported(onestep, folder, adapter, out):
    """Errors of merged folders in f32 and bf16, ours and PEFT's, and of what transformers computes from the first."""
    exact, own = merged(folder, adapter, torch.float64), merged(folder, adapter, torch.float32)
    for name, dtype in ("float32", torch.float32), ("bfloat16", torch.bfloat16):
        target = out / name
        more = ["--dtype", "f32"] if dtype is torch.float32 else []
        run(onestep, "export", "--merge", "--verify", "--model", folder, "--adapter", adapter, "--out", target, *more)
        model = transformers.AutoModelForCausalLM.from_pretrained(target, dtype=dtype)
        ours = {key: parameter.detach() for key, parameter in model.named_parameters()}
        assert ours.keys() == exact.keys(), sorted(ours.keys() ^ exact.keys())
        errors = [(peer.error(exact[key], ours[key]), peer.error(exact[key], own[key].to(dtype))) for key in exact]
        yield f"export, {name}", max(e for e, _ in errors), max(2.0**-24, *(e for _, e in errors), 0.0)


def group(name):
    """A quantity of tests/reference.rs: tensors that share a bar."""
    for prefix, label in ("sft.", "adapter after sft"), ("full.", "weights after full sft"):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            return f"{prefix}{rest}" if rest in ("loss", "grad_norm") else label
    return name


def compare(onestep, seed, folder):
    """(quantity, our error, transformers' own) of one drawn model."""
    draw = random.Random(seed)
    settings, description = draw_folder(draw, seed, folder)
    print(f"seed {seed}: {description}", flush=True)
    model, adapter = folder / "model", folder / "adapter"
    arguments = model, adapter, peer.sequences(model), settings
    exact = peer.quantities(*arguments, torch.float64)
    own = peer.own_errors(exact, *arguments, orders=ORDERS)
    longest = max(len(ids) for ids, _ in arguments[2])
    micro_tokens = draw.randint(longest, 3 * longest)
    found = {}
    for prefix, chosen in ("", None), ("adapter.", adapter):
        found |= {prefix + name: tensor for name, tensor in scored(onestep, model, folder, chosen).items()}
    for prefix, chosen in ("sft.", adapter), ("full.", None):
        run_folder = folder / prefix.rstrip(".")
        result = tuned(onestep, model, run_folder, settings, micro_tokens, chosen)
        found |= {prefix + name: tensor for name, tensor in result.items()}
    trained = [{name for name in names if name.startswith(("sft.", "full."))} for names in (exact, found)]
    assert trained[0] == trained[1], sorted(trained[0] ^ trained[1])
    rows = {}
    for name, tensor in found.items():
        errors = rows.setdefault(group(name), [0.0, 0.0])
        errors[0] = max(errors[0], peer.error(exact[name], tensor))
        errors[1] = max(errors[1], own[name])
    yield from ((quantity, *errors) for quantity, errors in rows.items())
    yield from exported(onestep, model, adapter, folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--onestep", required=True, help="the program")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10, help="how many models")
    parser.add_argument("--keep", type=Path, help="folder that keeps the models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    worst, missed = {}, 0
    for seed in range(options.seed, options.seed + options.count):
        folder = options.keep / f"seed-{seed}" if options.keep else Path(tempfile.mkdtemp())
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            for quantity, ours, own in compare(options.onestep, seed, folder):
                ratio = ours / own
                above = not ratio <= BAR
                missed += above
                print(f"  {quantity:32}{ours:10.2e}{own:10.2e}{ratio:7.2f}{'  ABOVE THE BAR' if above else ''}")
                worst[quantity] = max(worst.get(quantity, (0.0, seed)), (ratio, seed))
        except (RuntimeError, AssertionError) as error:
            missed += 1
            print(f"  FAILED: {error}")
        if not options.keep:
            shutil.rmtree(folder)
    print(f"worst of {options.count} models:")
    for quantity, (ratio, seed) in worst.items():
        print(f"  {quantity:32}{ratio:7.2f}  seed {seed}")
    print(f"{missed} above the bar or failed")
    sys.exit(missed > 0)


main()
