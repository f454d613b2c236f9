"""The tables of README.md and docs/results.md, made from the JSON files of this folder.

    python3 benches/results/tables.py            puts them between their markers
    python3 benches/results/tables.py --check    exit code 1 when a page has another table
"""
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGES = {"README.md": ["quickstart"], "docs/results.md": ["seeds", "peers", "sandbox"]}
PHASES = ["base", "sft", "rl"]
# What the peers are to be beaten by, by (model, work).
BARS = {
    ("quickstart", "decode, batch 1"): 5, ("quickstart", "decode, batch 16"): 5, ("quickstart", "decode, batch 192"): 5,
    ("quickstart", "train LoRA r=16"): 2, ("quickstart", "train all weights"): 2,
    ("0.5B shape", "decode, batch 1"): 1.8, ("0.5B shape", "train LoRA r=16"): 1.3,
}


def read(name):
    return json.loads((HERE / name).read_text())


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def scores(run, held_out):
    """The mean normalised score of every phase."""
    tasks = [task for task in run["tasks"].values() if task["held_out"] == held_out]
    return [mean(task[phase]["normalised"] for task in tasks) for phase in PHASES]


def seeds():
    runs = [read(path.name) for path in sorted(HERE.glob("quickstart-seed*.json"))]
    rows = []
    for run in runs:
        reward = run["rl"]["reward"]
        parts = [*scores(run, False), *scores(run, True), mean(reward[:5]), mean(reward[-5:])]
        rows.append([str(run["seed"]), *(f"{part:.3f}" for part in parts)])
    return ["seed", *(f"{kind} {phase}" for kind in ["held-in", "held-out"] for phase in PHASES), "reward, first 5", "last 5"], rows


def quickstart():
    run = read("quickstart-seed0.json")
    kinds = [("six tasks it was trained on", False), ("six held-out tasks", True)]
    rows = [[name, *(f"{score:.3f}" for score in scores(run, held_out))] for name, held_out in kinds]
    return ["normalised score (seed 0)", "base", "after SFT", "after RL"], rows


def peers():
    best = {}
    for row in read("cpu-peers.json")["rows"]:
        if row["ratio"]:
            key = row["model"], row["work"]
            best[key] = min(best.get(key, (float("inf"), "")), (row["ratio"]["median"], row["provider"]))
    rows = [[*key, peer, f"{ratio:.2f}", str(BARS.get(key, ""))] for key, (ratio, peer) in best.items()]
    return ["model", "work", "best peer", "times faster than it", "bar"], rows


def sandbox():
    results = read("sandbox.json")
    timed = results["latency"] + results["limit_to_free"] + results["restore"]
    rows = [[row["name"], f"{row['p50_ms']:.1f} ms", f"{row['p99_ms']:.1f} ms"] for row in timed]
    for row in results["throughput"]:
        rows.append([f"{row['name']}, {row['slots']} slots", f"{row['jobs_per_second']:.0f} jobs/s", ""])
    return ["", "p50", "p99"], rows


def markdown(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main():
    tables = {"quickstart": quickstart, "seeds": seeds, "peers": peers, "sandbox": sandbox}
    stale = []
    for page, names in PAGES.items():
        path = HERE.parents[1] / page
        text = old = path.read_text()
        for name in names:
            start, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
            before, rest = text.split(start)
            text = before + start + markdown(*tables[name]()) + end + rest.split(end, 1)[1]
        if text != old:
            stale.append(page)
            if "--check" not in sys.argv:
                path.write_text(text)
    if "--check" in sys.argv and stale:
        sys.exit(f"{', '.join(stale)}: run python3 benches/results/tables.py")


main()
