"""Timers: setitimer(2) and timer_create(2)."""
