"""ps-lite's test_connection: join the job and leave it again."""

from __future__ import annotations

import pslite


def main() -> None:
    office = pslite.start()
    name = office.name
    office.finalize()
    print("done", name)


if __name__ == "__main__":
    main()
