"""Signals: what is done about them, and which are pending."""
