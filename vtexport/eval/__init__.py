"""Measuring what a bundle's answers are worth: datasets, metrics, resumable runs, reports and plots."""
