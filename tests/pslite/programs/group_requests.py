"""ps-lite's test_simple_app: the scheduler sends 100 requests to all nodes; each receives exactly 100."""

from __future__ import annotations

import pslite
from pslite import ALL, Postoffice, SimpleApp, SimpleData

REQUESTS = 100


def live(office: Postoffice) -> int:
    """One process's part; returns how many requests it has received."""
    received: list[int] = []

    def handle(data: SimpleData, app: SimpleApp) -> None:
        assert (data.head, data.body, data.sender) == (1, "test", pslite.SCHEDULER)
        received.append(data.timestamp)
        app.response(data)

    app = SimpleApp(0, 0, office, handle)
    if office.role == "scheduler":
        for timestamp in [app.request(1, "test", ALL) for _ in range(REQUESTS)]:
            app.wait(timestamp)
    office.barrier(ALL)
    assert received == list(range(REQUESTS)), f"{office.name} received {len(received)}"
    return len(received)


def main() -> None:
    office = pslite.start()
    print("done", office.name, live(office))
    office.finalize()


if __name__ == "__main__":
    main()
