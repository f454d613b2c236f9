"""The table of docs/results.md from RESULTS.csv: of every quantity the case with the highest ratio.

    python table.py            prints it
    python table.py PAGE     puts it between the markers of that file
"""
import csv
import sys
from pathlib import Path

START, END = "<!-- reference table -->", "<!-- end of reference table -->"


def markdown(rows):
    lines = ["| quantity | case | ours | transformers in f32 | ratio | highest of one tensor |", "|---|---|---|---|---|---|"]
    for quantity in dict.fromkeys(row["quantity"] for row in rows):
        of_it = [row for row in rows if row["quantity"] == quantity]
        worst = max(of_it, key=lambda row: float(row["ratio"]))
        highest = max(float(row["highest ratio of one tensor"]) for row in of_it)
        cells = quantity, worst["case"], worst["ours"], worst["transformers f32"], worst["ratio"], f"{highest:.2f}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    with open(Path(__file__).parent / "RESULTS.csv", newline="") as file:
        table = markdown(list(csv.DictReader(file)))
    if len(sys.argv) < 2:
        print(table, end="")
        return
    path = Path(sys.argv[1])
    before, rest = path.read_text().split(START)
    path.write_text(before + START + "\n" + table + END + rest.split(END)[1])


main()
