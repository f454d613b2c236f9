"""Writes the parquet files that tests/dataset.rs reads, with pyarrow 26: the same two conversations in three formats and compressions."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
TALKS = [("2+2?", "4"), ("ä日本🙂?", "ja")]

messages = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in TALKS]
pq.write_table(pa.table({"id": [1, 2], "messages": messages}), HERE / "messages.parquet", compression="snappy")
sharegpt = [[{"from": "human", "value": q}, {"from": "gpt", "value": a}] for q, a in TALKS]
pq.write_table(pa.table({"conversations": sharegpt}), HERE / "sharegpt.parquet", compression="zstd")
questions, answers = zip(*TALKS)
alpaca = {"instruction": questions, "input": ["", None], "output": answers}
pq.write_table(pa.table(alpaca), HERE / "alpaca.parquet", compression="none")
