"""The tasks on which the chapters train: small, seeded, made of real pictures, digits and series.

Each lives in a file of its own, named for what is asked: `from attn_lib.tasks import lamplit_digits`.
"""
