"""Telling other services what happens: signed messages, sent until they are taken."""
