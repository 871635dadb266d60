"""Sees all of it: metrics, progress and the report. Imports no other package of this project."""
