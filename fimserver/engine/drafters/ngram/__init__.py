"""N-gram drafter: proposes what followed earlier occurrences of the last tokens."""
