"""Align, average and classify recordings of two Japanese vowels by nine speakers."""
