"""Starts and stops the processes of a job: one scheduler, servers and workers, on one host or several.

Uses the standard library only, and imports neither ``pslite`` nor ``kvstore``: what it starts need not use them.
"""
