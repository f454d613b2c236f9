"""Exchange with transformers, PEFT and gguf, both ways: what they write loads in onestep, what onestep writes loads in them, and the
numbers agree. Not part of `cargo test`; run by hand, in some three minutes:

    python tests/reference/exchange.py target/debug/onestep

Written for torch 2.11, transformers 5.23, peft 0.21, gguf 0.19. The bound of every comparison is derived: our error against the same
computation in f64 is at most twice the library's own error in the type at hand, both root mean squares as shares of the largest magnitude.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import gguf_check

VOCAB = 288
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SHAPE = dict(
    vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=256, bos_token_id=None, eos_token_id=257, pad_token_id=256,
)
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def configurations():
    theta = lambda scaling: {"rope_theta": 10000.0, **(scaling or {"rope_type": "default"})}
    yield "qwen2", transformers.Qwen2Config(**SHAPE, tie_word_embeddings=True, rope_parameters=theta(None))
    yield "qwen2-yarn", transformers.Qwen2Config(**SHAPE, tie_word_embeddings=False, rope_parameters=theta(YARN))
    yield "qwen3", transformers.Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True, rope_parameters=theta(None))
    yield "llama", transformers.LlamaConfig(**SHAPE, tie_word_embeddings=False, rope_parameters=theta({"rope_type": "linear", "factor": 2.0}))
    yield "llama3", transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=theta(LLAMA3))


def adapters():
    yield "suffixes", dict(r=4, lora_alpha=8, target_modules=["q_proj", "self_attn.v_proj", "mlp.down_proj"])
    yield "all-linear", dict(r=3, lora_alpha=6, target_modules="all-linear", use_rslora=True)
    yield "patterns", dict(
        r=4, lora_alpha=8, target_modules=r".*layers\.[02]\..*(q|k|o|up)_proj", rank_pattern={"layers.0.self_attn.q_proj": 7, "up_proj": 2},
        alpha_pattern={r".*\.2\..*k_proj": 3, "up_proj": 16},
    )


def random_model(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.1 if weight.dim() < 2 else 0.15)
    return model


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    vocab = {piece: i for i, piece in enumerate(alphabet + ["".join(m) for m in merges])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokens = dict(pad_token="<|endoftext|>", eos_token="<|im_end|>")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=["<|im_start|>"], **tokens)
    wrapped.chat_template = TEMPLATE
    return wrapped


def run(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout


def texts():
    rng = np.random.default_rng(1)
    return [rng.integers(0, VOCAB, n).tolist() for n in (2, 17, 100, 256)]


def ours(binary, folder, *more):
    """Log-probabilities by `onestep score`."""
    with tempfile.TemporaryDirectory() as scratch:
        given, written = Path(scratch, "in.jsonl"), Path(scratch, "out.jsonl")
        given.write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in texts()))
        run(binary, "score", "--model", folder, "--input", given, "--output", written, "--backend", "cpu", *more)
        return np.concatenate([json.loads(line)["logprobs"] for line in written.read_text().splitlines()])


@torch.no_grad()
def theirs(model):
    """Log-probabilities in the model's own type."""
    rows = []
    for ids in texts():
        ids = torch.tensor([ids])
        logp = model(ids).logits[0, :-1].log_softmax(-1)
        rows.append(logp.gather(1, ids[0, 1:, None])[:, 0].double().numpy())
    return np.concatenate(rows)


def compare(what, found, library, exact):
    """`found` and `library` (the library in the same type) against `exact` (f64)."""
    scale = np.abs(exact).max()
    our, their = (np.sqrt(np.mean((x - exact) ** 2)) / scale for x in (found, library))
    print(f"  {what:<58} error {our:.2e}, the library's {their:.2e}")
    assert our <= 2 * their, what


def check_folder(binary, folder, exact, tok, dtype):
    """An exported folder in transformers: everything loads, and its logits are those of `exact` but for rounding."""
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert loaded.dtype == dtype, loaded.dtype
    wanted = {name: weight.detach() for name, weight in exact.named_parameters()}
    for name, weight in loaded.named_parameters():
        # The library's own way: merged in f32, then cast.
        rounded = wanted[name].float().to(dtype).double()
        error, plain = (weight.double() - wanted[name]).abs().max(), (rounded - wanted[name]).abs().max()
        assert error <= 2 * plain or error <= 2**-22 * wanted[name].abs().max(), (name, error, plain)
    back = AutoTokenizer.from_pretrained(folder)
    talk = [{"role": "user", "content": "hello äß"}]
    for prompt in (True, False):
        arguments = dict(add_generation_prompt=prompt, tokenize=True, return_dict=False)
        assert back.apply_chat_template(talk, **arguments) == tok.apply_chat_template(talk, **arguments)
    # The chat template's end first, then that of config.json.
    assert loaded.generation_config.eos_token_id == [tok.eos_token_id, 257], loaded.generation_config
    return loaded


def check_model(binary, scratch, name, config):
    print(name)
    base = scratch / name
    model, tok = random_model(config), tokenizer()
    model.save_pretrained(base, max_shard_size="200KB")
    tok.save_pretrained(base)
    exact = random_model(config).double()
    compare("score, sharded folder of transformers", ours(binary, base), theirs(model), theirs(exact))
    for kind, settings in adapters():
        # A new model each time: PEFT changes it in place.
        torch.manual_seed(3)
        peft = get_peft_model(random_model(config), LoraConfig(**settings, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for key, weight in peft.named_parameters():
                if "lora_B" in key:
                    weight.normal_(0.0, 0.2)
        folder = scratch / f"{name}-{kind}"
        peft.eval().save_pretrained(folder)
        double = PeftModel.from_pretrained(random_model(config), folder).double().eval()
        compare(f"score, adapter of PEFT ({kind})", ours(binary, base, "--adapter", folder), theirs(peft), theirs(double))
        merged = double.merge_and_unload()
        merge = ["export", "--model", base, "--adapter", folder, "--merge"]
        for word, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
            out = scratch / f"{name}-{kind}-{word}"
            said = run(binary, *merge, "--out", out, "--dtype", word, "--shard-size", "150KB", "--verify")
            assert "verified" in said, said
            loaded = check_folder(binary, out, merged, tok, dtype)
            plain = PeftModel.from_pretrained(random_model(config), folder).merge_and_unload().to(dtype)
            compare(f"merged export in transformers ({word})", theirs(loaded.double()), theirs(plain.double()), theirs(merged))
        for word in ("f32", "f16", "bf16", "q8_0"):
            file = scratch / f"{name}-{kind}-{word}.gguf"
            run(binary, *merge, "--format", "gguf", "--out", file, "--dtype", word)
            gguf_check.check(file, scratch / f"{name}-{kind}-f32", word)
    return base


def check_training(binary, scratch, base, config):
    """What training writes: an adapter for PEFT, a model folder (and its checkpoints) for transformers."""
    data = scratch / "data.jsonl"
    lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in (("hi", "hello"), ("2", "3"))]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for rslora in ("true", "false"):
        out = scratch / f"sft-{rslora}"
        more = ["lora.rank=4", f"lora.rslora={rslora}", "epochs=10", "learning_rate=0.005"]
        run(binary, "sft", "--model", base, "--data", data, "--out", out, "--device", "cpu", *more)
        peft = PeftModel.from_pretrained(random_model(config), out / "adapter").eval()
        found, library = ours(binary, base, "--adapter", out / "adapter"), theirs(peft)
        assert np.abs(found - ours(binary, base)).max() > 1e-2, "training changed something"
        compare(f"our adapter in PEFT (rslora={rslora})", found, library, theirs(peft.double()))
    out = scratch / "sft-full"
    run(binary, "sft", "--model", base, "--data", data, "--out", out, "--device", "cpu", "sft.full=true", "save_dtype=bf16", "epochs=3")
    (step,) = (out / "checkpoints" / "sft").iterdir()
    for folder, dtype in ((out / "model", torch.bfloat16), (step / "model", torch.float32)):
        loaded, info = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and loaded.dtype == dtype
        assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE
        wide = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        found = ours(binary, folder)
        compare(f"fully trained {folder.parent.name}/model in transformers", found, theirs(wide), theirs(wide.double()))
        run(binary, "export", "--model", folder, "--out", scratch / f"again-{folder.parent.name}", "--verify")


def main():
    binary = Path(sys.argv[1]).resolve()
    assert math.isfinite(binary.stat().st_size)
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for index, (name, config) in enumerate(configurations()):
            base = check_model(binary, scratch, name, config)
            if index == 0:
                check_training(binary, scratch, base, config)
    print("all agree")


if __name__ == "__main__":
    main()
