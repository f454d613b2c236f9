"""Made-up texts about five topics.

    python prepare.py PUBLIC_DIR PRIVATE_DIR [SEED]

writes PUBLIC_DIR/data.npz and PRIVATE_DIR/labels.csv; SEED (0) draws the split.
"""
import sys

import numpy as np

public, private = sys.argv[1:3]
split = np.random.RandomState(int(sys.argv[3]) if len(sys.argv) > 3 else 0)

# Each class has 60 favourite words of 400; 25 % of a text comes from them, the rest from a Zipf law common to all.
random = np.random.RandomState(11)
classes, documents, length, vocabulary = 5, 1000, 25, 400
syllables = ["ba", "ko", "ri", "tu", "men", "sal", "dor", "vi", "pex", "lun"]
words = np.array(["".join(syllables[int(c)] for c in "%03d" % i) for i in range(vocabulary)])
zipf = 1 / np.arange(1, vocabulary + 1)
zipf /= zipf.sum()
favourites = [random.permutation(vocabulary)[:60] for _ in range(classes)]
y = random.randint(0, classes, documents)
X = []
for c in y:
    is_favourite = random.rand(length) < 0.25
    drawn = np.where(is_favourite, random.choice(favourites[c], length), random.choice(vocabulary, length, p=zipf))
    X.append(" ".join(words[drawn]))
X = np.array(X)
order = split.permutation(len(X))
train, test = order[:500], order[500:1000]
np.savez(public + "/data.npz", X=X[train], y=y[train], Z=X[test])
np.savetxt(private + "/labels.csv", y[test], fmt="%.17g")
