"""Pages that another attention actor hands over, on their way into the prefix cache.

Held from the offer to the last of them, so that none is evicted before the others are there; then they are
cached as any others. A page that does not come is computed. Knows nothing of sockets.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from actors.counters import HandoverCounters
from actors.page_frames import Offer, Pages, Taken, Wanted, check_pages
from actors.pages import PagePool
from actors.prefix import KEY_BYTES
from model.cache import LatentCache
from router.wire import BadFrame

KEPT_SHARE = 8  # of the pool, one part is not given to what is handed over
LONGEST_S = 10.0  # for one frame


@dataclass(slots=True)
class _Delivery:
    """One offer. since_s: the last frame of it came. held: pages by place, each with this as a reader."""

    keys: tuple[bytes, ...]
    since_s: float
    missing: set[int] = field(default_factory=set)
    held: dict[int, int] = field(default_factory=dict)


class Intake:
    """By sender, one delivery at a time. maker: whose pages are as good as those made here."""

    def __init__(self, pool: PagePool, cache: LatentCache, maker: str, counters: HandoverCounters) -> None:
        self._pool, self._cache, self._maker, self._counters = pool, cache, maker, counters
        self._deliveries: dict[Hashable, _Delivery] = {}

    def offered(self, sender: Hashable, offer: Offer, now_s: float) -> Wanted:
        """Hold what is here, say what is not."""
        self.forget(sender)
        are_keys = all(len(key) == KEY_BYTES for key in offer.keys) and len({*offer.keys}) == len(offer.keys)
        if offer.maker != self._maker or not are_keys:
            return Wanted(num_fit=0, places=())
        room = max(0, self._pool.num_free - self._pool.num_pages // KEPT_SHARE)
        delivery = _Delivery(keys=offer.keys[:room], since_s=now_s)
        for place, key in enumerate(delivery.keys):
            page = self._pool.find(key)
            if page is None:
                delivery.missing.add(place)
            else:
                [delivery.held[place]] = self._pool.share([page])
        self._deliveries[sender] = delivery
        wanted = Wanted(num_fit=len(delivery.keys), places=tuple(sorted(delivery.missing)))
        self._end_if_whole(sender)
        return wanted

    def came(self, sender: Hashable, pages: Pages, payload: memoryview, now_s: float) -> Taken | None:
        """Cache them; the answer, if nothing more is to come."""
        try:
            self._cache_all(sender, pages, payload)
            self._deliveries[sender].since_s = now_s
        except BadFrame as error:
            self.forget(sender)
            return Taken(problem=str(error))
        return Taken() if self._end_if_whole(sender) else None

    def expire(self, now_s: float) -> None:
        """Who takes too long keeps no pages from others."""
        for sender, delivery in list(self._deliveries.items()):
            if now_s >= delivery.since_s + LONGEST_S:
                self.forget(sender)

    def forget(self, sender: Hashable) -> None:
        """What has come stays cached; what has not will not."""
        delivery = self._deliveries.pop(sender, None)
        if delivery is not None:
            self._pool.give_back([delivery.held[place] for place in sorted(delivery.held)])

    def _cache_all(self, sender: Hashable, pages: Pages, payload: memoryview) -> None:
        delivery, size = self._deliveries.get(sender), self._cache.page_bytes
        if delivery is None or not delivery.missing.issuperset(pages.places):
            raise BadFrame("pages came that were not wanted, or not any more")
        check_pages(pages, payload, size)
        for number, place in enumerate(pages.places):
            key = delivery.keys[place]
            page = self._pool.find(key)  # somebody may have computed it meanwhile
            if page is not None:
                [delivery.held[place]] = self._pool.share([page])
            elif self._pool.can_take(1):
                delivery.held[place] = page = self._pool.adopt(key)
                self._cache.fill([page], payload[number * size : (number + 1) * size])
                self._counters.pages_in += 1
            else:
                raise BadFrame("there is no room any more")
        delivery.missing.difference_update(pages.places)

    def _end_if_whole(self, sender: Hashable) -> bool:
        is_whole = not self._deliveries[sender].missing
        if is_whole:
            self.forget(sender)
        return is_whole
