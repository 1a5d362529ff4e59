"""What the fetched files are turned into; the fetching itself needs a network."""

from __future__ import annotations

import pytest

from benchmarks.texts import join_paragraphs, quiz_text, read_capitals


def test_printed_lines_become_paragraphs():
    assert join_paragraphs(["", "a b", " c", "", "", "d", ""]) == "a b c\n\nd"


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("Kenya", "Kenya"),
        ("Alabama|Ala|AL", "Alabama"),
        ("Cal{if{ornia}}|CA", "California"),
        ("{The }Gambia", "The Gambia"),
        ("[St.|Saint] John", "St. John"),
        ("Bahr[a|e]in", "Bahrain"),
        ("{{People's }Republic of }China", "People's Republic of China"),
    ],
)
def test_a_pattern_of_the_quiz_at_its_longest(pattern, text):
    assert quiz_text(pattern) == text


def test_questions_about_capitals():
    lines = [
        "Kenya:Nairobi",
        "Vermont|Vt:Montpelier:VT:{red }clover",
        "Kenya:Nairobi",  # twice the same is once
        "Georgia:Atlanta",
        "Georgia:Tbilisi",  # another place of that name
        "Panama:Panama City",  # given away
        "Guinea-Bissau:Bissau",
        "Chad:N'Djamena",  # an accent, as the quiz writes them
    ]
    entries = {entry["answer"]: entry for entry in read_capitals(lines)}
    assert entries.keys() == {"Nairobi", "Montpelier"}
    assert entries["Nairobi"] == {
        "question": "What is the capital of Kenya?",
        "answer": "Nairobi",
        "reply": "The capital of Kenya is Nairobi.",
    }
