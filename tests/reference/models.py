"""Makes models/: small random models of every family and feature, and what transformers and PEFT compute from them.

    python models.py FOLDER [CASE ...]    makes the cases in FOLDER

A case is a Hugging Face folder with adapter/ (PEFT), data.jsonl (sequences with a mask), reference.safetensors (every quantity in
f64) and reference.json (the settings of the training steps; transformers' own error of every quantity in f32).
"""
import json
import shutil
import sys
from pathlib import Path

import safetensors.torch
import torch
import transformers

import folders
import peer

LENGTHS = [3, 9, 21, 48]
SAMPLED = 32  # a power of two, as the epsilons and scales below: the same number in f32 and f64
SFT = {"steps": 10, "warmup": 2, "learning_rate": 0.001953125, "weight_decay": 0.0625, "max_norm": 0.5}
ROPE = {
    "plain": {"rope_type": "default", "rope_theta": 10_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn of other ends": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 16, "beta_fast": 8.0,
        "beta_slow": 0.5, "attention_factor": 1.25, "truncate": False,
    },
}


def case(family, storage, rope, hidden, heads, mlp, tied, vocab=64, shard_bytes=None, old=False, eps=2**-20, **more):
    nh, nkv, hs = heads
    family = {"qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config, "llama": transformers.LlamaConfig}[family]
    config = family(
        vocab_size=vocab, hidden_size=hidden, num_attention_heads=nh, num_key_value_heads=nkv, head_dim=hs, intermediate_size=mlp,
        num_hidden_layers=2, tie_word_embeddings=tied, rope_parameters=ROPE[rope], max_position_embeddings=64,
        rms_norm_eps=eps, bos_token_id=0, eos_token_id=1, **more,
    )
    return config, storage, shard_bytes, old


CASES = {
    "qwen2-tied": case("qwen2", "f32", "plain", 32, (7, 1, 32), 32, True),
    "qwen2-untied-yarn": case("qwen2", "bf16", "yarn", 32, (4, 1, 32), 32, False, shard_bytes=50_000, old=True),
    "qwen3-tied": case("qwen3", "f16", "plain", 32, (2, 2, 64), 32, True),
    "qwen3-untied-biased": case("qwen3", "bf16", "linear", 16, (4, 1, 128), 32, False, vocab=80, attention_bias=True),
    "llama3": case("llama", "f32", "llama3", 32, (4, 1, 64), 40, False, shard_bytes=50_000, old=True, eps=2**-17),
    "llama-tied-biased": case("llama", "f16", "linear", 28, (7, 1, 32), 40, True, attention_bias=True),
    "llama-yarn": case("llama", "bf16", "yarn of other ends", 32, (2, 2, 64), 32, False),
}


def make(out, name, seed):
    config, storage, shard_bytes, old = CASES[name]
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folders.write_model(folder, config, storage, seed, shard_bytes)
    if old:
        folders.old_layout(folder)
    folders.write_adapter(folder / "adapter", folder, seed, rank=(4 if seed % 2 else 2), alpha=4.0, rslora=seed % 2 == 1)
    folders.write_data(folder, config.vocab_size, LENGTHS, SAMPLED, seed)
    arguments = folder, folder / "adapter", peer.sequences(folder), SFT
    exact = peer.quantities(*arguments, torch.float64)
    exact = {key: tensor.contiguous() for key, tensor in exact.items()}
    safetensors.torch.save_file(exact, folder / "reference.safetensors")
    record = {"sft": SFT, "own_f32_error": peer.own_errors(exact, *arguments)}
    (folder / "reference.json").write_text(json.dumps(record, indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    out, names = Path(sys.argv[1]), sys.argv[2:]
    for seed, name in enumerate(CASES):
        if not names or name in names:
            make(out, name, seed)
            print(name, flush=True)


main()
