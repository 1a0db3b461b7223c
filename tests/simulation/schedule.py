"""What goes wrong and when, as data.

A schedule is drawn by hypothesis, which also makes it smaller when it fails: fewer faults, prompter messages,
fewer actors. Knows nothing of what a fault does.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

DIE = "die"  # an expert actor ends; its next life serves `seconds` after that was noticed
DOUBT = "doubt"  # the controller replaces one that lives, which goes on answering for a while
CUT = "cut"  # every connection to it is lost, nothing else
HOLD = "hold"  # nothing reaches it or comes from it for `seconds`: a partition, or a process that is stopped
REFUSE = "refuse"  # it does not hold for `seconds` what the view says
SPOIL = "spoil"  # its answers have another shape for `seconds`
AWAY = "away"  # the controller says nothing for `seconds`
OTHERS = "others"  # every other attention actor that is at rest computes a step first
KINDS = (DIE, DOUBT, CUT, HOLD, REFUSE, SPOIL, AWAY, OTHERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """expert actors; copies: of each expert. anchor: the last one holds everything and nothing befalls it.

    attention_s: of a layer of a whole step.
    """

    experts: int
    copies: int = 1
    anchor: bool = False
    layers: int = 1
    micro_batches: int = 1
    attention_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """Of one message: how late it comes, and how often; 0 is never."""

    delay_ms: int = 0
    copies: int = 1


PROMPT = Delivery()


@dataclass(frozen=True, slots=True)
class Fault:
    """Befalls an expert actor (by its number, modulo how many there are) when message `at` is sent."""

    at: int
    kind: str
    actor: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """deliveries: of the messages in the order in which they are sent; later ones are prompt."""

    deliveries: tuple[Delivery, ...] = ()
    faults: tuple[Fault, ...] = ()


def schedules() -> st.SearchStrategy[Schedule]:
    """Most have a few faults at a few messages, some many at many."""
    delays_ms = (0, 0, 0, 1, 7, 50, 400, 6000)  # the last is later than anybody waits
    delivery = st.sampled_from([Delivery(delay, copies) for copies in (1, 1, 1, 2, 0) for delay in delays_ms])
    fault = st.builds(
        Fault,
        st.integers(0, 40),
        st.sampled_from(KINDS),
        st.integers(0, 3),
        st.sampled_from([0.0, 0.01, 0.5, 3.0, 8.0]),
    )
    return st.builds(
        Schedule,
        st.lists(delivery, max_size=30).map(tuple),
        st.lists(fault, max_size=8).map(tuple),
    )
