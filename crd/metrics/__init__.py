"""What Prometheus scrapes.

``names`` declares every metric once; the **exporter** serves them from a thread of its own.
"""
