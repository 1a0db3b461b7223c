"""Who reads something else than others did may not serve beside them."""

from __future__ import annotations

from actors.options import Loaded
from cluster.first_read import FirstRead


def loaded(checksum: str = "c", **digests: int) -> Loaded:
    """digests: of e0, e1, ... of layer 3."""
    return Loaded(
        host="h",
        port=1,
        metrics_port=1,
        pid=1,
        bytes_read=1,
        checksum=checksum,
        digests={(3, int(name[1:])): digest for name, digest in digests.items()},
    )


def test_the_first_reading_of_each_expert_is_what_all_others_must_be():
    read = FirstRead()
    assert read.compare(loaded(e0=7, e1=8), is_expert=True) is None
    assert read.compare(loaded("another share", e1=8, e2=9), is_expert=True) is None
    assert read.compare(loaded(e2=10), is_expert=True) == (
        "read expert 2 of layer 3 otherwise than others did"
    )
    assert read.digests_of([(3, 2), (3, 5)]) == {(3, 2): 9}


def test_every_attention_actor_reads_the_same():
    read = FirstRead()
    assert read.checksum == ""
    assert read.compare(loaded("c"), is_expert=False) is None
    assert read.compare(loaded("c"), is_expert=False) is None
    assert read.compare(loaded("d"), is_expert=False) == "read other weights than others did"
    assert read.checksum == "c"
