"""Count the words of text files."""

import argparse
from collections import 
from pathlib import Path


def count_words(path):
    counter = Counter()
    with open(path, encoding="utf-8") as file:
        for line in file:
            counter.update(line.split())
    return counter


def print_top(counter, limit=10):
    for word, count in counter.most_common(limit):
        print(f"{word}: {count}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument(
    args = parser.parse_args()
    for path in args.paths:
        print_top(count_words(path), limit=args.limit)


if __name__ == "__main__":
    main()
