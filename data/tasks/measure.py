"""Measures m_init, m_best and noise_floor of every task, of both splits: real runs of real scripts, nothing estimated.

    python measure.py [--report] [--write] [TASK ...]

with a Python that holds the packages of data/python/requirements.txt. Takes some quarter of an hour
on 2 idle cores; --write puts the values into each task.toml. With --report only those of [report], so that rewards stay as they are.

m_init       the baseline script's metric on the reward split of the labels.
m_best       greedy composition of the ideas in data/ideas, judged on the reward split: of all ideas the best one is kept, then
             the best one on top of it, until none helps. Held-in tasks use the held-in ideas; held-out tasks the better of the
             two lists, so that their score stays near [0, 1] too.
noise_floor  half the deviation of the best script's metric over five other train/test splits, at most 5 % of the gap.
[report]     m_init: the baseline's metric on the report split. m_best: what is best on one small split has often fitted it, so a
             composition of its own is judged by the mean over three other train/test splits. Of all scripts met on its way and
             whose mean is worse than the best one's by at most 10 % of the gap, it is the best metric on the report split: a bound
             that a good script, being about as good as these, does not beat.

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
JUDGES = range(1, 4)
GOOD = 0.1  # of the gap


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


def run_all(task, folders, scripts, pool):
    """{script: its metrics (reward split, report split) on the data of each folder}, without those that failed on one."""
    scripts = list(scripts)
    metrics = [m for m, _ in pool.map(run, [(task, data, s) for s in scripts for data in folders], chunksize=1)]
    of_script = [metrics[i:i + len(folders)] for i in range(0, len(metrics), len(folders))]
    return {script: m for script, m in zip(scripts, of_script) if None not in m}


def greedy(task, folders, judge, script, ideas, pool):
    """The best script, the ideas that led there, and {script: its worth} of all that ran: `judge` makes one number of the metrics that
    `run_all` gives, and of two worths the higher is better."""
    sign, path = METRICS[task["metric"]][1], []
    worth = {s: sign * judge(m) for s, m in run_all(task, folders, [script], pool).items()}
    while True:
        made = edits(script, ideas)
        new = [s for s in made.values() if s not in worth]
        worth |= {s: sign * judge(m) for s, m in run_all(task, folders, new, pool).items()}
        idea = max(made, key=lambda idea: worth.get(made[idea], -np.inf), default=None)
        if idea is None or worth.get(made[idea], -np.inf) <= worth[script] + 1e-9:
            return script, path, worth
        script = made[idea]
        path.append(idea)


def search(task, folders, judge, baseline, pool):
    """As `greedy`, by the list of ideas that leads further; the worths are of all that ran by either."""
    lists = ["held_in", "held_out"] if task["held_out"] else ["held_in"]
    found = [greedy(task, folders, judge, baseline, load_ideas(name), pool) for name in lists]
    script, path, worth = max(found, key=lambda f: f[2][f[0]])
    return script, path, {s: w for _, _, worth in found for s, w in worth.items()}


def measure_reward(task, baseline, root, pool):
    """m_init, m_best and noise_floor of the reward split, as task.toml states them."""
    zero = prepare(task, 0, root)
    script, path, worth = search(task, [zero], lambda m: m[0][0], baseline, pool)
    m_init, m_best = abs(worth[baseline]), abs(worth[script])
    again = [run_all(task, [prepare(task, seed, root)], [script], pool) for seed in SPLITS]
    deviation = float(np.std([m[0][0] for by_script in again for m in by_script.values()]))
    floor = min(deviation / 2, 0.05 * abs(m_best - m_init))
    print(f"{task['name']:10} {task['metric']:8} m_init {m_init:.6g}  m_best {m_best:.6g}  noise_floor {floor:.3g} (deviation {deviation:.3g}): "
          f"{' > '.join(path)}", flush=True)
    return dict(m_init=f"{m_init:.6g}", m_best=f"{m_best:.6g}", noise_floor=f"{floor:.3g}")


def measure_report(task, baseline, root, pool):
    """m_init and m_best of [report], as task.toml states them."""
    sign = METRICS[task["metric"]][1]
    script, path, worth = search(task, [prepare(task, seed, root) for seed in JUDGES], np.mean, baseline, pool)
    good = [s for s, w in worth.items() if worth[script] - w <= GOOD * (worth[script] - worth[baseline])]
    there = {s: m[0][1] for s, m in run_all(task, [prepare(task, 0, root)], [baseline, *good], pool).items()}
    m_init, m_best = there[baseline], sign * max(sign * there[s] for s in good if s in there)
    print(f"{task['name']:10} {task['metric']:8} report split: m_init {m_init:.6g}  m_best {m_best:.6g}, of {len(good)} good scripts of {len(worth)}; "
          f"best by the mean {abs(worth[script]):.6g}, there {there.get(script)}: {' > '.join(path)}", flush=True)
    return dict(m_init=f"{m_init:.6g}", m_best=f"{m_best:.6g}")


if __name__ == "__main__":
    options = {"--report", "--write"} & set(sys.argv)
    steps = [measure_report] if "--report" in options else [measure_reward, measure_report]
    names = [a for a in sys.argv[1:] if a not in options] or sorted(p.parent.name for p in HERE.glob("*/task.toml"))
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        for name in names:
            manifest = HERE / name / "task.toml"
            task = tomllib.loads(manifest.read_text())
            baseline = (HERE / name / task["entry"]).read_text()
            for measure in steps:
                with tempfile.TemporaryDirectory() as root:
                    values = measure(task, baseline, Path(root), pool)
                if "--write" in options:
                    parts = list(manifest.read_text().partition("[report]\n"))
                    part = 2 if measure is measure_report else 0
                    for key, value in values.items():
                        parts[part] = re.sub(rf"^{key} = .*$", f"{key} = {value}", parts[part], flags=re.M)
                    manifest.write_text("".join(parts))
