"""A GGUF file that onestep wrote, read by the gguf package (0.19) and compared with the Hugging Face folder of the same weights in f32:

    python tests/reference/gguf_check.py FILE.gguf FOLDER {f32,f16,bf16,q8_0}

Names are those of gguf's own table, q8_0 must be bit for bit what gguf's quantiser gives, f16 and bf16 what torch's casts give.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

ARCHITECTURES = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA}
TYPES = gguf.GGMLQuantizationType


def weights(folder):
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name).float() for name in file.keys()}
    return found


def permuted(weight, heads):
    """Rows of each head from halves to neighbours."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def expected_bytes(weight, word):
    if weight.ndim < 2 or word == "f32":
        return weight.tobytes(), TYPES.F32
    if word == "q8_0" and weight.shape[-1] % 32 == 0:
        return gguf.quants.quantize(weight, TYPES.Q8_0).tobytes(), TYPES.Q8_0
    if word == "bf16":
        return torch.from_numpy(weight).bfloat16().view(torch.int16).numpy().tobytes(), TYPES.BF16
    return weight.astype(np.float16).tobytes(), TYPES.F16


def check(file, folder, word):
    reader = gguf.GGUFReader(file)
    config = AutoConfig.from_pretrained(folder)
    arch = config.model_type
    value = lambda key: reader.fields[key].contents()
    names = gguf.get_tensor_name_map(ARCHITECTURES[arch], config.num_hidden_layers)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    for name, weight in weights(folder).items():
        weight = weight.numpy()
        if arch == "llama":
            for part, count in heads.items():
                weight = permuted(weight, count) if f".{part}." in name else weight
        tensor = tensors.pop(names.get_name(name, try_suffixes=(".weight", ".bias")))
        content, kind = expected_bytes(np.ascontiguousarray(weight), word)
        assert tensor.tensor_type == kind, (name, tensor.tensor_type)
        assert tensor.shape.tolist() == list(reversed(weight.shape)), (name, tensor.shape, weight.shape)
        assert tensor.data.tobytes() == content, name
        assert tensor.data_offset % reader.alignment == 0
        if kind == TYPES.Q8_0:
            back = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1, 32)
            scale = np.abs(weight.reshape(-1, 32)).max(1) / 127
            # Half a step, and 127 steps of a scale that f16 rounds by 2^-11.
            assert (np.abs(back - weight.reshape(-1, 32)).max(1) <= scale * (0.5 + 128 * 2.0**-11) + 2.0**-24 * 128).all(), name

    rope = config.rope_parameters
    if rope["rope_type"] == "llama3":
        plain = 1.0 / rope["rope_theta"] ** (np.arange(0, head_size(config), 2) / head_size(config))
        scaled, _ = rope_functions()["llama3"](config, "cpu")
        factors = tensors.pop("rope_freqs.weight").data
        # transformers computes in f32: some operations' roundings.
        np.testing.assert_allclose(factors, plain / scaled.double().numpy(), rtol=16 * 2.0**-23)
    assert not tensors, f"left over: {list(tensors)}"

    for key, wanted in {
        "general.architecture": arch,
        "general.file_type": {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}[word],
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": head_size(config),
        f"{arch}.attention.value_length": head_size(config),
        f"{arch}.rope.dimension_count": head_size(config),
        f"{arch}.attention.layer_norm_rms_epsilon": np.float32(config.rms_norm_eps),
        f"{arch}.rope.freq_base": np.float32(rope["rope_theta"]),
    }.items():
        assert value(key) == wanted, (key, value(key), wanted)
    if rope["rope_type"] in ("linear", "yarn"):
        assert value(f"{arch}.rope.scaling.type") == rope["rope_type"]
        assert value(f"{arch}.rope.scaling.factor") == rope["factor"]
    if rope["rope_type"] == "yarn":
        assert value(f"{arch}.rope.scaling.original_context_length") == rope["original_max_position_embeddings"]
        assert value(f"{arch}.rope.scaling.attn_factor") == 1.0

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = json.loads(Path(folder, "tokenizer.json").read_text())
    tokens, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    assert len(tokens) == len(kinds) == config.vocab_size
    special = set(tokenizer.all_special_ids)
    for token, index in tokenizer.get_vocab().items():
        assert tokens[index] == token and kinds[index] == (3 if index in special else 1), (token, index, kinds[index])
    assert all(kind == 5 for kind in kinds[len(tokenizer.get_vocab()) :])
    assert value("tokenizer.ggml.model") == "gpt2" and value("tokenizer.ggml.pre") == "gpt-2"
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in text["model"]["merges"]]
    assert value("tokenizer.ggml.merges") == pairs
    assert value("tokenizer.ggml.eos_token_id") == tokenizer.eos_token_id
    assert value("tokenizer.chat_template") == tokenizer.chat_template


def head_size(config):
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rope_functions():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    return ROPE_INIT_FUNCTIONS


if __name__ == "__main__":
    check(*sys.argv[1:4])
    print(f"{sys.argv[1]}: as expected")
