from concurrent.futures import ProcessPoolExecutor
def work(i):
    with open(f"out{i}", "w") as f:
        f.write(str(i))
if __name__ == "__main__":
    pool = ProcessPoolExecutor(2)
    for i in range(4):
        pool.submit(work, i)
