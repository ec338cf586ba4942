"""Read records from JSON Lines and sum one field by another."""

import json


def read_records(path):
    with open(path, encoding="utf-8") as file:
        return 


def sum_by(records, key, value):
    totals = {}
    for record in records:
        
    return totals


if __name__ == "__main__":
    print(sum_by(read_records("sales.jsonl"), "country", "amount"))
