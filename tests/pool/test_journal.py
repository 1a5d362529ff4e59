"""What a pool remembers of a stream: the last save that counts, and the tokens since."""

from __future__ import annotations

from pathlib import Path

from paged_stream.pool.journal import Journal

A, B, C = Path("a"), Path("b"), Path("c")


def test_a_save_replaces_the_tokens_before_it():
    journal = Journal(3)
    assert journal.extend([10, 11, 12]) == []
    assert journal.saved(5, A) == []
    assert (journal.start, journal.tokens.tolist(), journal.path, journal.end) == (5, [12], A, 6)
    assert journal.saved(6, B) == [A]
    assert (journal.start, journal.tokens.tolist(), journal.path) == (6, [], B)


def test_a_save_that_is_ahead_counts_once_its_tokens_are_acknowledged():
    journal = Journal(0)
    journal.extend([1, 2])
    assert journal.saved(4, A) == []
    assert journal.path is None
    assert journal.extend([3]) == []
    assert journal.path is None
    assert journal.extend([4, 5]) == []
    assert (journal.start, journal.tokens.tolist(), journal.path) == (4, [5], A)


def test_a_save_that_is_ahead_is_of_no_use_without_its_worker():
    journal = Journal(0)
    journal.extend([1])
    journal.saved(3, A)
    assert journal.forget_ahead() == [A]
    assert journal.extend([7, 8, 9]) == []
    assert (journal.start, journal.tokens.tolist(), journal.path) == (0, [1, 7, 8, 9], None)


def test_an_older_save_that_comes_late_is_dropped():
    journal = Journal(0)
    journal.extend([1, 2, 3])
    journal.saved(3, B)
    assert journal.saved(2, A) == [A]
    journal.saved(5, C)
    assert journal.extend([4, 5]) == [B]
    assert (journal.start, journal.path) == (5, C)


def test_tokens_since_the_last_try_at_a_save_are_counted():
    journal = Journal(0)
    journal.extend([1, 2])
    journal.num_unsaved = 0  # a try that fails
    journal.extend([3])
    assert (journal.num_unsaved, journal.end) == (1, 3)
