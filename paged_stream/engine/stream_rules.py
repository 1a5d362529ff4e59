"""What every stream refuses, in one wording, and from which seed each of its turns draws: the same
in this process and in a pool."""

from __future__ import annotations

from paged_stream.scheduler.sampling_params import SamplingParams, check_params_type

# Tokens that may be appended while a stream generates; they wait on the host.
MAX_QUEUED_TOKENS = 1 << 18

_MASK63 = (1 << 63) - 1
_TURN_STEP = 0x9E3779B97F4A7C15  # odd and irregular, so that turns get unlike seeds


def turn_seed(stream_seed: int, num_turns: int) -> int:
    """The seed of a stream's next turn, if its parameters have none.

    Args:
        stream_seed: the stream's own, which is saved with it.
        num_turns: turns that the stream has had.

    Returns:
        63 bits.
    """
    return (stream_seed + num_turns * _TURN_STEP) & _MASK63


def closed_error() -> ValueError:
    """For every use of a closed stream."""
    return ValueError("the stream is closed")


def generating_error() -> ValueError:
    """For what cannot be done during a turn."""
    return ValueError("the stream is generating; let it finish first, or call end_turn")


def note_position(error: BaseException, position: int) -> None:
    """Tell, with an error that has ended an `append`, what the stream keeps of it."""
    error.add_note(f"what was not computed yet is taken back: the stream is at position {position}")


def no_cut_error() -> ValueError:
    """For cutting a stream without a window."""
    return ValueError("a model with learned absolute positions cannot close a gap")


def check_turn_params(params: SamplingParams) -> None:
    """Refuse parameters that no turn of a stream can have.

    Raises:
        ValueError: names the field.
    """
    check_params_type(params)
    if params.n != 1:
        raise ValueError(f"n must be 1 for a stream, got {params.n}; fork it")


def check_can_generate(num_tokens: int, *, has_next: bool = True) -> None:
    """Refuse to generate from a stream without a token to go on from.

    Args:
        num_tokens: the stream's length.
        has_next: whether it has a token whose logits say what comes next.

    Raises:
        ValueError: says to append first.
    """
    if not num_tokens:
        raise ValueError("the stream is empty; append to it before generating")
    if not has_next:
        raise ValueError(
            "the stream was rewound to where its window begins; append to it before generating"
        )


def check_queue(num_queued: int, num_new: int) -> None:
    """Refuse more tokens than may wait for the end of a turn.

    Raises:
        ValueError: says how many there are.
    """
    if num_queued + num_new > MAX_QUEUED_TOKENS:
        raise ValueError(
            f"at most {MAX_QUEUED_TOKENS} tokens may queue while the stream is generating, "
            f"{num_queued} do, got {num_new} more; let it finish first"
        )
