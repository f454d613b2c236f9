"""Random model folders as transformers and PEFT write them: weights, adapter, tokenizer, sequences with a loss mask."""
import json
import math

import peft
import tokenizers
import torch
import transformers

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def draw_weights(parameters, generator):
    """Weights with which every layer matters: activations of order one, attention that is far from uniform, norms around one."""
    for name, parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            noise = 1 + 0.3 * noise
        elif name.endswith("bias"):
            noise *= 0.3
        elif "embed" in name:
            noise *= 0.3
        else:
            noise *= 1.2 / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(noise)


def old_layout(folder, **more):
    """config.json as transformers 4 wrote it: rope_theta beside rope_scaling, torch_dtype."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config | more, indent=2) + "\n")


def write_model(folder, config, storage, seed, shard_bytes=None):
    """config.json and safetensors; several with an index where shard_bytes is smaller than the model."""
    model = transformers.AutoModelForCausalLM.from_config(config)
    draw_weights(model.named_parameters(), torch.Generator().manual_seed(seed))
    model.to(TYPES[storage]).save_pretrained(folder, max_shard_size=shard_bytes or 10**9)
    (folder / "generation_config.json").unlink(missing_ok=True)
    write_tokenizer(folder, config.vocab_size)


def write_tokenizer(folder, vocab):
    """One word a token; never used but to open the folder, since data.jsonl has ids."""
    words = {f"<{i}>": i for i in range(vocab)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<0>")).save(str(folder / "tokenizer.json"), pretty=False)
    template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    config = {"eos_token": "<1>", "unk_token": "<0>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config) + "\n")


def write_adapter(folder, model_folder, seed, rank, alpha, rslora=False, modules=MODULES):
    """A PEFT adapter whose B is not zero."""
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=sorted(modules), task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * (0.5 / math.sqrt(parameter.shape[-1]))
    model.peft_config["default"].base_model_name_or_path = "model"
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_modules"].sort()  # a set, written in an order that changes from run to run
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_data(folder, vocab, lengths, sampled, seed):
    """data.jsonl: a trajectory of one step a sequence; `sampled` tokens in all have a loss, some of every sequence."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n, count: torch.randperm(n, generator=generator)[:count].tolist()
    masks = [[False] * n for n in lengths]
    for mask in masks:
        mask[1 + draw(len(mask) - 1, 1)[0]] = True
    places = [(i, j) for i, mask in enumerate(masks) for j in range(1, len(mask)) if not mask[j]]
    for chosen in draw(len(places), sampled - len(masks)):
        i, j = places[chosen]
        masks[i][j] = True
    lines = []
    for index, mask in enumerate(masks):
        ids = torch.randint(vocab, (len(mask),), generator=generator).tolist()
        step = {
            "prompt": [], "reply": "", "ids": ids, "is_sampled": mask, "logprobs": [], "action": "Final Answer", "case": "neutral",
            "reward": 0.0, "metric_before": 0.0, "metric_after": 0.0, "report_before": 0.0, "report_after": 0.0, "observation": "",
            "snapshot_before": "", "snapshot_after": "",
        }
        line = {
            "task": "random", "source": "expert", "index": index, "ideas": [], "steps": [step], "metric_final": 0.0,
            "metric_best": 0.0, "report_final": 0.0, "report_best": 0.0, "failed": False,
        }
        lines.append(json.dumps(line))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
