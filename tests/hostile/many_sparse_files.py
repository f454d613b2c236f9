# Sparse files, each at the limit, which are far more when they are copied.
# verdict: ok
# limits: file=1M disk=4M
for i in range(40):
    with open(f"sparse-{i}", "wb") as file:
        file.truncate(1 << 20)
