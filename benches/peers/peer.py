"""PyTorch, transformers and PEFT as the other side of `cargo bench --bench peers`: reads one JSON request a line, answers one JSON
line. It waits in between, so that two sides can take turns on one machine. Every time is measured here, around the work alone.

open    {name, model, dtype, compiled, threads}            loads a Hugging Face folder under a name
train   {name, adapter, ids, lr, clip}                     readies training: of a PEFT adapter, or of all weights (adapter null)
step    {name}                                             forward, backward, clipping, AdamW on the readied batch
decode  {name, prompts, samples, new, scores}              prefill of the prompts, then greedy decoding of `samples` copies of each"""
import json
import os
import sys
import time

import peft
import torch
import transformers


class Case:
    def __init__(self, model, dtype, compiled):
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(model, dtype=getattr(torch, dtype), attn_implementation="sdpa").eval()
        # Shapes that never change let torch.compile do its best: a cache of full size for each batch size and length.
        self.caches = {} if compiled else None
        self.one = torch.compile(self.model.forward, dynamic=False) if compiled else self.model

    def cache(self, batch, length):
        if self.caches is None:
            return transformers.DynamicCache(config=self.model.config)
        if (batch, length) not in self.caches:
            self.caches[batch, length] = transformers.StaticCache(config=self.model.config, max_cache_len=length)
        cache = self.caches[batch, length]
        cache.reset()
        return cache

    def train(self, adapter, ids, lr, clip):
        if adapter is None:
            model = self.model
        else:
            # The adapter in the type of its base: faster than PEFT's default, which keeps it in f32.
            model = peft.PeftModel.from_pretrained(self.model, adapter, is_trainable=True, autocast_adapter_dtype=False)
        self.trained = model.train()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
        self.ids, self.clip = torch.tensor(ids), clip
        return {"parameters": sum(p.numel() for p in self.parameters)}

    def step(self):
        begin = time.perf_counter()
        loss = self.trained(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss.item()
        return {"seconds": time.perf_counter() - begin, "loss": loss, "norm": norm.item()}

    @torch.inference_mode()
    def decode(self, prompts, samples, new, scores):
        if self.caches is not None:  # a static cache cannot be forked
            prompts, samples = [prompt for prompt in prompts for _ in range(samples)], 1
        ids, logps, largest = [], [], 0.0
        cache = self.cache(len(prompts), len(prompts[0]) + new)

        def choose(logits):
            nonlocal largest
            chosen = logits[:, -1].argmax(-1, keepdim=True)
            if scores:
                largest = max(largest, logits[:, -1].abs().max().item())
                logps.append(logits[:, -1].float().log_softmax(-1).gather(-1, chosen))
            ids.append(chosen)
            return chosen

        begin = time.perf_counter()
        out = self.model(input_ids=torch.tensor(prompts), past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = choose(out.logits)
        prefill = time.perf_counter()
        if samples > 1:
            cache.batch_repeat_interleave(samples)
            token = token.repeat_interleave(samples, 0)
            ids, logps = [token], [logp.repeat_interleave(samples, 0) for logp in logps]
        for _ in range(new - 1):
            token = choose(self.one(input_ids=token, past_key_values=cache, use_cache=True).logits)
        answer = {"prefill": prefill - begin, "decode": time.perf_counter() - prefill}
        if scores:
            answer |= {"ids": torch.cat(ids, 1).tolist(), "logps": torch.cat(logps, 1).tolist(), "largest": largest}
        return answer


def main():
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.cuda.is_current_stream_capturing = lambda: False  # transformers asks; the stand-ins of install.sh cannot answer
    torch.set_num_interop_threads(1)
    cases = {}
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    answer = versions | {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "pid": os.getpid()}
    while True:
        print(json.dumps(answer), file=answers, flush=True)
        request = json.loads(sys.stdin.readline() or '{"do": "end"}')
        do, name = request.pop("do"), request.pop("name", None)
        try:
            if do == "end":
                return
            if do == "open":
                torch.set_num_threads(request.pop("threads"))
                begin = time.perf_counter()
                cases[name] = Case(**request)
                answer = {"seconds": time.perf_counter() - begin}
            else:
                answer = getattr(cases[name], do)(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}


main()
