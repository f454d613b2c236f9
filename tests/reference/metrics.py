"""Makes metrics.json: random labels and predictions, and what scikit-learn 1.7.2 and scipy 1.15.3 say of them.

    python metrics.py > metrics.json

MAP@5 exists in neither; it is Kaggle's definition (ml_metrics.apk), and where a row has one answer, checked against scikit-learn's
label_ranking_average_precision_score.
"""
import json

import numpy as np
import scipy.stats
from sklearn import metrics

random = np.random.RandomState(0)
cases = []


def add(metric, labels, predictions, value):
    labels, predictions = (np.asarray(t, float).reshape(len(t), -1) for t in (labels, predictions))
    cases.append(dict(metric=metric, labels=labels.tolist(), predictions=predictions.tolist(), value=float(value)))


def apk(answers, guesses):
    hits, score = 0, 0.0
    for i, guess in enumerate(guesses):
        if guess in answers and guess not in guesses[:i]:
            hits += 1
            score += hits / (i + 1)
    return score / min(len(set(answers)), 5)


for n, classes in [(7, 2), (30, 3), (50, 10)]:
    y, p = random.randint(0, classes, n), random.randint(0, classes, n)
    add("accuracy", y, p, metrics.accuracy_score(y, p))
    add("accuracy", y, y + random.uniform(-0.4, 0.4, n), 1.0)  # a regressor's output: the nearest class counts
    add("qwk", y, p, metrics.cohen_kappa_score(y, p, weights="quadratic", labels=range(classes)))
y, p = [0, 1, 1, 5, 5, 3], [0, 1, 5, 5, 4, 3]  # a value that neither holds (2): distances stay those of the values
add("qwk", y, p, metrics.cohen_kappa_score(y, p, weights="quadratic", labels=range(6)))

for n, levels in [(20, None), (40, 4), (60, 2)]:
    y = random.permutation(np.arange(n) % 3 == 0).astype(int)
    p = random.rand(n) if levels is None else random.randint(0, levels, n) / levels  # ties
    add("auc", y, p, metrics.roc_auc_score(y, p))
    add("auc", y, np.stack([1 - p, p], 1), metrics.roc_auc_score(y, p))
add("auc", [0, 1, 0, 1], [0.5] * 4, 0.5)
add("auc", [0, 1, 0, 1], [-3.0, 1e9, -4.0, 0.0], 1.0)

for n, classes in [(12, 2), (25, 3), (40, 7)]:
    y = np.concatenate([np.arange(classes), random.randint(0, classes, n - classes)])
    p = random.dirichlet(np.ones(classes), n)
    add("logloss", y, p, metrics.log_loss(y, p))
    raw = random.rand(n, classes)  # rows that do not sum to 1
    add("logloss", y, raw, metrics.log_loss(y, raw / raw.sum(1, keepdims=True)))
    sure = np.eye(classes)[random.randint(0, classes, n)]  # zeros and ones, some wrong
    clipped = np.clip(sure, 1e-15, 1 - 1e-15)
    add("logloss", y, sure, -np.mean(np.log(clipped[np.arange(n), y])))
y, p = random.permutation(np.arange(30) % 2), random.rand(30)
add("logloss", y, p, metrics.log_loss(y, p))

for n in [5, 40, 200]:
    y = random.gamma(2.0, 10.0, n)
    p = np.abs(y + random.randn(n) * 5)
    p[: n // 2] = np.round(p[: n // 2])
    add("mae", y, p, metrics.mean_absolute_error(y, p))
    add("rmse", y, p, metrics.root_mean_squared_error(y, p))
    add("rmsle", y, p, metrics.root_mean_squared_log_error(y, p))
    add("pearson", y, p, scipy.stats.pearsonr(y, p).statistic)
    add("pearson", y, 1000 - p, scipy.stats.pearsonr(y, 1000 - p).statistic)
    Y, P = random.randn(n, 3), random.randn(n, 3) * [1, 5, 0.1]
    add("mcrmse", Y, P, metrics.root_mean_squared_error(Y, P))
add("mcrmse", [[1.0], [2.0]], [[2.0], [4.0]], metrics.root_mean_squared_error([1.0, 2.0], [2.0, 4.0]))

for n, answers, guesses in [(20, 1, 5), (20, 1, 3), (20, 3, 5)]:
    y = np.stack([random.permutation(8)[:answers] for _ in range(n)])
    p = np.stack([random.permutation(8)[:guesses] for _ in range(n)])
    value = np.mean([apk(list(a), list(b)) for a, b in zip(y, p)])
    if answers == 1:
        found = (p == y).any(1)
        scores = np.zeros((n, 8))
        np.put_along_axis(scores, p, np.arange(guesses, 0, -1.0)[None], 1)
        ranked = metrics.label_ranking_average_precision_score(np.eye(8)[y[found, 0]], scores[found])
        assert np.isclose(value, ranked * found.mean())
    add("map@5", y, p, value)
y, p = [[3, 3], [1, 2], [4, 5]], [[3, 3, 3], [2, 2, 1], [0, 0, 0]]  # repeated answers and repeated guesses
add("map@5", y, p, np.mean([apk(a, b) for a, b in zip(y, p)]))

print("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]")
