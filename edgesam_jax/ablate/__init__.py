"""The paper's ablations as one command each (``python -m edgesam_jax.ablate``).

arms      the runs that the tables compare, and what they share
tables    the tables: which runs, the paper's numbers, what the paper concludes
grid      trains and scores the runs of several tables and seeds, each once
text      a table as Markdown and as a picture, and what the seeds allow to say
usable    does a score tell good masks from bad ones?
"""
