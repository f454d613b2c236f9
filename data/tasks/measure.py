"""Measures m_init, m_best and noise_floor of every task, of both splits: real runs of real scripts, nothing estimated.

    python measure.py [--write] [TASK ...]

with a Python that holds the packages of data/python/requirements.txt. Takes some ten minutes
on 2 idle cores; --write puts the values into each task.toml.

m_init       the baseline script's metric on the reward split of the labels.
m_best       greedy composition of the ideas in data/ideas, judged on the reward split: of all ideas the best one is kept, then
             the best one on top of it, until none helps. Held-in tasks use the held-in ideas; held-out tasks the better of the
             two lists, so that their score stays near [0, 1] too.
noise_floor  half the deviation of the best script's metric over five other train/test splits, at most 5 % of the gap.
[report]     m_init and m_best of the same two scripts on the report split, which chose nothing.

Scripts run in forked processes of this one, without isolation: they are ours.
"""
import os

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"

import contextlib
import io
import multiprocessing
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import warnings
from pathlib import Path

import numpy as np
import sklearn.dummy, sklearn.ensemble, sklearn.linear_model, sklearn.naive_bayes, sklearn.neighbors, sklearn.svm  # warm
import sklearn.feature_extraction.text, sklearn.preprocessing, sklearn.tree  # warm
from sklearn import metrics

HERE = Path(__file__).resolve().parent
CPU_SECONDS = 2.0
SPLITS = range(1, 6)


# ------------------------------------------------------------------------------------------------------------- metrics
def log_loss(y, p):
    p = np.stack([1 - p, p], 1) if p.ndim == 1 else p
    p = np.clip(p / p.sum(1, keepdims=True), 1e-15, 1 - 1e-15)
    return -np.mean(np.log(p[np.arange(len(y)), y.astype(int)]))


METRICS = {  # name: function, +1 where higher is better
    "accuracy": (lambda y, p: metrics.accuracy_score(y, np.round(p)), 1),
    "auc": (lambda y, p: metrics.roc_auc_score(y, p if p.ndim == 1 else p[:, 1]), 1),
    "logloss": (log_loss, -1),
    "mae": (metrics.mean_absolute_error, -1),
    "rmse": (metrics.root_mean_squared_error, -1),
}


# -------------------------------------------------------------------------------------------------------------- splits
def mix(x):
    """One step of SplitMix64, as in src/task/split.rs."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def split_rows(name, rows):
    """(rows of the reward split, rows of the report split): by the rules of src/task/split.rs; tests/tasks compares them."""
    key = 0
    for byte in name.encode():
        key = mix(key ^ byte)
    order = sorted(range(rows), key=lambda row: mix(key ^ row))
    half = (rows + 1) // 2
    return sorted(order[:half]), sorted(order[half:])


# --------------------------------------------------------------------------------------------------------------- ideas
def load_ideas(name):
    ideas = tomllib.loads((HERE.parent / "ideas" / f"{name}.toml").read_text())["idea"]
    return [idea for idea in ideas if "np.random." not in idea["replace"]]  # luck is no improvement


REGRESSORS = r"Regressor|Ridge\(|RidgeCV\(|Lasso|Lars|ElasticNet|SVR|LinearRegression|ARDRegression|MatchingPursuit"


def is_of_kind(script, kind):
    if kind == "text":
        return re.search(r"^vec = ", script, re.M) is not None
    model = re.search(r"^model = (.*)$", script, re.M).group(1)
    is_regression = re.search(REGRESSORS, model) is not None
    return is_regression == (kind == "regression")


def edits(script, ideas):
    """Every other script that one idea makes of this one: {idea: script}. The rules are those of src/ideas.rs."""
    made = {}
    for idea in ideas:
        lines = script.split("\n")
        hits = [i for i, line in enumerate(lines) if line.startswith(idea["line"])]
        if len(hits) != 1 or ("kind" in idea and not is_of_kind(script, idea["kind"])):
            continue
        line, text = lines[hits[0]], idea["replace"]
        if "find" in idea:
            groups = re.sub(r"\$\{?(\d+)\}?", r"\\g<\1>", text)
            text = re.sub(idea["find"], groups, line, count=1)
        if text != line:
            lines[hits[0]] = text
            made[idea["name"]] = "\n".join(lines)
    return made


# ---------------------------------------------------------------------------------------------------------------- runs
class OutOfTime(BaseException):
    pass


def out_of_time(*_):
    raise OutOfTime


def run(job):
    """(task, data folder, script) -> ((metric of the reward split, of the report split) or None, CPU seconds)."""
    task, data, script = job
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.symlink(f"{data}/public/data.npz", "data.npz")
    start = time.process_time()
    signal.signal(signal.SIGPROF, out_of_time)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    metric = None
    try:
        np.random.seed(0)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exec(compile(script, task["entry"], "exec"), {"__name__": "__main__"})
        seconds = time.process_time() - start
        p, y = np.loadtxt(task["submission"], delimiter=","), np.loadtxt(f"{data}/private/labels.csv")
        if len(p) == len(y) and np.isfinite(p).all():
            metric = tuple(float(METRICS[task["metric"]][0](y[rows], p[rows])) for rows in split_rows(task["name"], len(y)))
    except (Exception, OutOfTime):  # an idea that crashes or is too slow: not a candidate
        seconds = time.process_time() - start
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.chdir("/")
        shutil.rmtree(folder)
    return metric, seconds


def prepare(task, seed, root):
    folder = root / f"{task['name']}-{seed}"
    for part in ("public", "private"):
        (folder / part).mkdir(parents=True)
    script = HERE / task["name"] / "prepare.py"
    subprocess.run([sys.executable, "-B", script, folder / "public", folder / "private", str(seed)], check=True)
    return str(folder)


def greedy(task, data, script, metric, ideas, pool):
    """The best script on the reward split, its metrics, and the ideas that led there."""
    sign, path = METRICS[task["metric"]][1], []
    while True:
        made = edits(script, ideas)
        metrics = [m for m, _ in pool.map(run, [(task, data, s) for s in made.values()], chunksize=1)]
        ranked = [(sign * m[0], -i) for i, m in enumerate(metrics) if m is not None]
        best, i = max(ranked, default=(-np.inf, 0))
        if best <= sign * metric[0] + 1e-9:
            return script, metric, path
        idea = list(made)[-i]
        script, metric = made[idea], metrics[-i]
        path.append(idea)


def measure(task, root, pool):
    sign = METRICS[task["metric"]][1]
    data = prepare(task, 0, root)
    baseline = (HERE / task["name"] / task["entry"]).read_text()
    (baseline_metrics, seconds), = pool.map(run, [(task, data, baseline)])
    lists = ["held_in", "held_out"] if task["held_out"] else ["held_in"]
    found = [greedy(task, data, baseline, baseline_metrics, load_ideas(name), pool) for name in lists]
    script, best_metrics, _ = max(found, key=lambda f: sign * f[1][0])
    (m_init, report_init), (m_best, report_best) = baseline_metrics, best_metrics
    again = pool.map(run, [(task, prepare(task, seed, root), script) for seed in SPLITS])
    gap = abs(m_best - m_init)
    deviation = float(np.std([m[0] for m, _ in again if m is not None]))
    floor = min(deviation / 2, 0.05 * gap)
    print(f"{task['name']:10} {task['metric']:8} m_init {m_init:.6g}  m_best {m_best:.6g}  noise_floor {floor:.3g} (deviation {deviation:.3g})  "
          f"baseline {1000 * seconds:.0f} ms CPU; report split {report_init:.6g} {report_best:.6g}")
    for (_, metric, ideas), name in zip(found, lists):
        print(f"{'':10} {name} ideas {metric[0]:.6g}, report {metric[1]:.6g}: {' > '.join(ideas)}", flush=True)
    return (dict(m_init=f"{m_init:.6g}", m_best=f"{m_best:.6g}", noise_floor=f"{floor:.3g}"),
            dict(m_init=f"{report_init:.6g}", m_best=f"{report_best:.6g}"))


if __name__ == "__main__":
    names = [a for a in sys.argv[1:] if a != "--write"] or sorted(p.parent.name for p in HERE.glob("*/task.toml"))
    with tempfile.TemporaryDirectory() as root, multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        for name in names:
            manifest = HERE / name / "task.toml"
            values = measure(tomllib.loads(manifest.read_text()), Path(root), pool)
            if "--write" in sys.argv:
                parts = manifest.read_text().partition("[report]\n")
                texts = [parts[0], parts[2]]
                for i, of_split in enumerate(values):
                    for key, value in of_split.items():
                        texts[i] = re.sub(rf"^{key} = .*$", f"{key} = {value}", texts[i], flags=re.M)
                manifest.write_text(parts[1].join(texts))
