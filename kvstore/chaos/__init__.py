"""``pslite chaos``: kills and stops processes of real jobs at random times, and counts what got lost.

``lanes.py`` is the oracle, ``worker.py`` what every process of a job runs, ``trial.py`` starts a job and does it harm.
"""
