"""What opening a model costs: peak memory, split into anonymous and file-backed, and the seconds `onestep score` takes to its first logits, with a
cold and a warm page cache. The weights are zeros in sparse files of the shape of a published model, in shards of 5 GB, so nothing is downloaded
(a sparse file is read from no disk: the cold figure is that of page faults alone, not of a drive). The standard library only.

    cargo build --release && python3 benches/loading.py target/release/onestep --out benches/results/loading.json
"""

import argparse
import json
import os
import platform
import struct
import subprocess
import tempfile
import time
from pathlib import Path

SHAPES = {
    "qwen2.5-0.5b": dict(vocab=151936, hidden=896, layers=24, heads=14, kv=2, size=64, mlp=4864, tied=True),
    "qwen2.5-7b": dict(vocab=152064, hidden=3584, layers=28, heads=28, kv=4, size=128, mlp=18944, tied=False),
}
SHARD = 5_000_000_000
TOKENS = 4


def tensors(shape):
    c, q, kv, f = shape["hidden"], shape["heads"] * shape["size"], shape["kv"] * shape["size"], shape["mlp"]
    yield "model.embed_tokens.weight", [shape["vocab"], c]
    for i in range(shape["layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", [c]
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{layer}self_attn.{name}_proj.weight", [rows, c]
            yield f"{layer}self_attn.{name}_proj.bias", [rows]
        yield layer + "self_attn.o_proj.weight", [c, q]
        yield layer + "post_attention_layernorm.weight", [c]
        yield layer + "mlp.gate_proj.weight", [f, c]
        yield layer + "mlp.up_proj.weight", [f, c]
        yield layer + "mlp.down_proj.weight", [c, f]
    yield "model.norm.weight", [c]
    if not shape["tied"]:
        yield "lm_head.weight", [shape["vocab"], c]


def write(folder, shape):
    """Sparse bf16 shards, an index and a configuration; returns the bytes of the weights."""
    shards, room = [], 0
    for name, extents in tensors(shape):
        size = 2
        for extent in extents:
            size *= extent
        if size > room:
            shards.append({})
            room = SHARD
        shards[-1][name] = (extents, size)
        room -= size
    places, total = {}, 0
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        header, offset = {}, 0
        for name, (extents, size) in shard.items():
            header[name] = {"dtype": "BF16", "shape": extents, "data_offsets": [offset, offset + size]}
            offset += size
            places[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + offset)
        total += offset
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({
        "model_type": "qwen2", "vocab_size": shape["vocab"], "hidden_size": shape["hidden"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv"], "intermediate_size": shape["mlp"],
        "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": shape["tied"],
        "torch_dtype": "bfloat16",
    }))
    return total


def forget(folder):
    """Drops the files' pages from the cache."""
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def score(binary, folder):
    given, written = folder / "in.jsonl", folder / "out.jsonl"
    given.write_text(json.dumps({"ids": list(range(1, 1 + TOKENS))}) + "\n")
    written.unlink(missing_ok=True)
    command = [binary, "score", "--model", folder, "--input", given, "--output", written, "--backend", "cpu"]
    begin, peak = time.monotonic(), {"RssAnon": 0, "RssFile": 0}
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE)
    while process.poll() is None:
        try:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                key, _, rest = line.partition(":")
                if key in peak:
                    peak[key] = max(peak[key], 1024 * int(rest.split()[0]))
        except (FileNotFoundError, ProcessLookupError):
            pass
        time.sleep(0.002)
    assert process.returncode == 0, process.stderr.read().decode()
    assert len(json.loads(written.read_text())["logprobs"]) == TOKENS - 1
    return {"seconds": round(time.monotonic() - begin, 3), "anonymous_bytes": peak["RssAnon"], "file_bytes": peak["RssFile"]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, action="append")
    arguments = parser.parse_args()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    results = {"cpu_count": os.cpu_count(), "memory_bytes": memory, "machine": platform.machine(), "tokens": TOKENS, "models": {}}
    for name in arguments.shape or SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            total = write(folder, SHAPES[name])
            forget(folder)
            row = {"weight_bytes": total, "cold": score(arguments.binary, folder), "warm": score(arguments.binary, folder)}
        row["anonymous_share"] = round(max(row[run]["anonymous_bytes"] for run in ("cold", "warm")) / total, 4)
        results["models"][name] = row
        print(name, json.dumps(row))
        assert row["anonymous_share"] < 0.05, f"{name}: weights were copied"
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
