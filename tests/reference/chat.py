"""Makes chat.json and the small tokenizers beside it: conversations as transformers renders and tokenizes them.

    python chat.py [OUT]        (transformers 5.23, tokenizers 0.23; trl 1.16 has the published templates that ours are checked with)

The tokenizers are trained here on the project's own text, with the pre-tokenizers of Qwen2 (NFC, single digits) and of Llama 3 (digits in threes).
Once made they are kept: the ids in chat.json belong to them (delete a folder to train it again).
The day of `strftime_now` is fixed to 26 Jul 2024, the one on which Llama 3 falls back, as in ours.
"""
import datetime
import glob
import json
import os
import sys

import tokenizers
import transformers
import trl
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.utils import chat_template_utils

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "chat.json")
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


class Day(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


chat_template_utils.datetime = Day


def tokenizer(name, digits, special, normalizer, bos, eos):
    folder = os.path.join(HERE, "tokenizers", name)
    if not os.path.exists(folder):
        os.makedirs(folder)
        t = tokenizers.Tokenizer(models.BPE())
        t.normalizer = normalizer
        split = tokenizers.Regex(WORDS.replace("DIGITS", digits))
        t.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        files = [os.path.join(ROOT, "README.md"), *sorted(glob.glob(os.path.join(ROOT, "data", "tasks", "*", "*.md")))]
        t.train(files, trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False))
        t.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in special])
        if name == "qwen":
            # As in Qwen3: added, but no special tokens.
            t.add_tokens([tokenizers.AddedToken(s, special=False, normalized=False) for s in ["<think>", "</think>"]])
        if bos:
            t.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, t.token_to_id(bos))])
        t.save(os.path.join(folder, "tokenizer.json"), pretty=False)
        with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
            json.dump(dict(bos_token=bos, eos_token=eos, tokenizer_class="PreTrainedTokenizerFast"), f)
            f.write("\n")
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


TOKENIZERS = dict(
    qwen=tokenizer("qwen", r"\p{N}", CHATML, normalizers.NFC(), None, "<|im_end|>"),
    llama3=tokenizer("llama3", r"\p{N}{1,3}", LLAMA, None, "<|begin_of_text|>", "<|eot_id|>"),
)
# file, its tokenizer, the token that ends a reply
TEMPLATES = [("chatml", "qwen", "<|im_end|>"), ("chatml_generation", "qwen", "<|im_end|>"), ("qwen2_5", "qwen", "<|im_end|>"),
             ("qwen3", "qwen", "<|im_end|>"), ("llama3", "llama3", "<|eot_id|>"), ("llama3_2", "llama3", "<|eot_id|>"),
             ("features", "llama3", None)]


def talk(*turns):
    return [dict(role=role, content=content) for role, content in turns]


PLAIN = [("user", "How many rows has the table?"), ("assistant", "It has 12345 rows.")]
CONVERSATIONS = dict(
    user=talk(PLAIN[0]),
    pair=talk(*PLAIN),
    system=talk(("system", "Be short."), *PLAIN),
    multi=talk(("system", "  Be short.\n"), *PLAIN, ("user", "And columns?"), ("assistant", "7"), ("user", "Thanks"), ("assistant", "ok\n")),
    no_system_multi=talk(*PLAIN, ("user", "def f(x):\n    return x ** 2\n"), ("assistant", "```python\ndef f(x):\n\treturn x * x\n```")),
    empty=talk(("system", ""), ("user", ""), ("assistant", "")),
    spaces=talk(("user", "  two  spaces  "), ("assistant", "tail  \n\n")),
    unicode=talk(("system", "Réponds en français 日本語"), ("user", "naïve e\u0301 Å 🙂👩‍👩‍👧 \u200b\u00a0ß ﬁ"), ("assistant", "Ünïcödé: 12٣４ Ω ﷺ 한글")),
    special=talk(("user", "what is <|im_end|> or <|eot_id|>?"), ("assistant", "<|im_start|>user is a token, so is <|start_header_id|>")),
    quotes=talk(("user", "it's \"quoted\" \\ {{ not a template }} {% if %} <a & b>"), ("assistant", "don't\r\nworry")),
    tool=talk(("user", "Run it"), ("assistant", "Running."), ("tool", '{"accuracy": 0.91, "note": "<b>it\'s é</b>"}'), ("tool", "second"), ("assistant", "0.91")),
    two_systems=talk(("system", "one"), ("user", "hi"), ("system", "two"), ("user", "there?"), ("assistant", "yes")),
    think=talk(("user", "2+2?"), ("assistant", "<think>\nadd them\n</think>\n\n4"), ("user", "3+3?"), ("assistant", "<think>\nagain\n</think>\n\n6")),
    open_end=talk(*PLAIN, ("user", "And now?")),
)


NOW = dict(type="function", function=dict(name="now", description="the time in a <zone>, é", parameters=dict(
    type="object", properties=dict(zone=dict(type="string", enum=["UTC", "local"])), required=["zone"])))
ADD = dict(type="function", function=dict(name="add", description="", parameters=dict(type="object", properties={})))


def call(name, arguments, **more):
    return dict(type="function", function=dict(name=name, arguments=arguments), **more)


# Items of data files: what a message and an item may have beyond role and content.
ITEMS = dict(
    thought=dict(messages=[dict(role="user", content="2+2?"), dict(role="assistant", content="4", reasoning_content="Two and two make four.")]),
    thought_lines=dict(messages=[dict(role="user", content="2+2?"), dict(role="assistant", content="\n4", thinking="\nadd\n\nthem\n")]),
    thoughts=dict(messages=[dict(role="system", content="Be short."), dict(role="user", content="2+2?"),
                            dict(role="assistant", content="4", reasoning="add"), dict(role="user", content="3+3?"),
                            dict(role="assistant", content="6", reasoning_content="again")]),
    no_thinking=dict(messages=talk(("user", "2+2?"), ("assistant", "4")), chat_template_kwargs=dict(enable_thinking=False)),
    thinking=dict(messages=talk(("user", "2+2?"), ("assistant", "4")), chat_template_kwargs=dict(enable_thinking=True)),
    tools=dict(tools=[NOW, ADD], messages=talk(("system", "Be short."), ("user", "which tools?"), ("assistant", "now and add"))),
    call=dict(tools=[NOW], messages=[
        dict(role="user", content="what time is it?"),
        dict(role="assistant", content="", tool_calls=[call("now", dict(zone="UTC", n=1.5, list=[1, None, True], text="é <b>"))]),
        dict(role="tool", content="12:00", tool_call_id="1", name="now"), dict(role="assistant", content="noon")]),
    calls=dict(tools=[NOW, ADD], messages=[
        dict(role="user", content="both"),
        dict(role="assistant", content="Both then.", tool_calls=[call("now", dict(zone="local")), call("add", {}, id="c2")]),
        dict(role="tool", content="12:00"), dict(role="tool", content="0"), dict(role="assistant", content="done"),
        dict(role="user", content="thanks"), dict(role="assistant", content="ok")]),
    thoughtful_call=dict(tools=[NOW], messages=[
        dict(role="user", content="what time is it?"),
        dict(role="assistant", content="", reasoning_content="look it up", tool_calls=[call("now", dict(zone="UTC"))]),
        dict(role="tool", content="12:00"), dict(role="assistant", content="noon", reasoning_content="that is noon")]),
    call_text=dict(messages=[dict(role="user", content="add"), dict(role="assistant", content="", tool_calls=[call("add", '{"a": 1, "b":2}')])]),
)
# What a template cannot render, or what transformers would quote a second time: no reference.
LACKS = dict(qwen2_5=["thought", "thought_lines", "thoughts", "thoughtful_call", "no_thinking", "thinking", "call_text"], qwen3=[])


def render(name, t, messages, prompt, tools=None, arguments=None):
    source = open(os.path.join(HERE, "templates", f"{name}.jinja")).read()
    return t.apply_chat_template(messages, tools=tools, chat_template=source, tokenize=False, add_generation_prompt=prompt, **(arguments or {}))


def encode(t, text):
    return t(text, add_special_tokens=False, return_offsets_mapping=True)


def masked(name, t, messages, stop, **more):
    """The token sequences to train on: a reply is what is rendered behind its own prompt, up to its stop token. Replies share a sequence
    as long as the template only appends. None where a token spans the boundary of a reply (transformers has no answer to that)."""
    sequences, text, spans = [], "", []
    for i in [i for i, m in enumerate(messages) if m["role"] == "assistant"]:
        prompt, whole = render(name, t, messages[:i], True, **more), render(name, t, messages[:i + 1], False, **more)
        assert whole.startswith(prompt), (name, prompt, whole)
        if not prompt.startswith(text):
            sequences.append((text, spans))
            spans = []
        end = whole.rfind(stop) + len(stop)
        assert end > len(prompt)
        spans, text = spans + [(len(prompt), end)], whole
    if spans:
        sequences.append((text, spans))
    found = []
    for text, spans in sequences:
        encoded = encode(t, text)
        ids, is_sampled = [], []
        for id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"]):
            if any(start < edge < end for span in spans for edge in span):
                return None
            if start < spans[-1][1]:
                ids.append(id)
                is_sampled.append(any(first <= start and end <= last for first, last in spans))
        found.append(dict(ids=ids, is_sampled=is_sampled))
    return found


cases = []
for name, tokenizer_name, stop in TEMPLATES:
    t = TOKENIZERS[tokenizer_name]
    published = os.path.join(os.path.dirname(trl.__file__), "chat_templates", f"{name}.jinja")
    published = open(published).read() if os.path.exists(published) else None
    if name.startswith("qwen"):
        assert open(os.path.join(HERE, "templates", f"{name}.jinja")).read() == published, name
    for label, messages in CONVERSATIONS.items():
        if name == "features" and label in ("empty", "user"):
            continue  # slices and `title` of what is not there
        case = dict(template=name, tokenizer=tokenizer_name, conversation=label)
        for key, prompt in [("whole", False), ("prompt", True)]:
            text = render(name, t, messages, prompt)
            if published and not name.startswith("qwen"):
                theirs = t.apply_chat_template(messages, chat_template=published, tokenize=False, add_generation_prompt=prompt)
                assert text == theirs, (name, label, text, theirs)
            case[key] = dict(text=text, ids=encode(t, text)["input_ids"])
            source = open(os.path.join(HERE, "templates", f"{name}.jinja")).read()
            ids = t.apply_chat_template(messages, chat_template=source, tokenize=True, add_generation_prompt=prompt, return_dict=True)
            assert ids["input_ids"] == case[key]["ids"], (name, label)
        # A leading line break would merge with the prompt's last one, special tokens in a reply are taken for its end: no reference.
        if stop and label != "special":
            case["masked"] = masked(name, t, messages, stop)
        if name == "chatml_generation" and case.get("masked"):
            theirs = t.apply_chat_template(messages, chat_template=source, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
            ours = case["masked"][0]
            n = len(ours["ids"])
            assert [bool(x) for x in theirs["assistant_masks"][:n]] == ours["is_sampled"] and not any(theirs["assistant_masks"][n:]), label
        cases.append(case)

items = []
for name, lacks in LACKS.items():
    t = TOKENIZERS["qwen"]
    for label, item in ITEMS.items():
        if label not in lacks:
            expected = masked(name, t, item["messages"], "<|im_end|>", tools=item.get("tools"), arguments=item.get("chat_template_kwargs"))
            assert expected, (name, label)
            items.append(dict(template=name, tokenizer="qwen", label=label, item=item, masked=expected))

texts = ["", " ", "\n\n", "hello world", "  lead", "1234567890 12 3", "it's we'LL DON'T", "\r\n\t mixed \r\n", "ä日本🙂", "e\u0301 Å ﬁ",
         "a<|im_end|>b<|eot_id|>c", "x<think>y</think>", "\u0000\u0007", "नमस्ते दुनिया", "مرحبا ١٢٣", "👩‍👩‍👧‍👦", "f(x)=x**2;//{}[]", "\u00a0nbsp\u3000wide", "A" * 70]
encodings = [dict(tokenizer=name, text=text, ids=encode(t, text)["input_ids"], decoded=t.decode(encode(t, text)["input_ids"]))
             for name, t in TOKENIZERS.items() for text in texts]
with open(OUT, "w") as f:
    json.dump(dict(templates=[dict(name=n, tokenizer=t, stop=s) for n, t, s in TEMPLATES], conversations=CONVERSATIONS, cases=cases, items=items,
                   encodings=encodings), f, ensure_ascii=False)
    f.write("\n")
