"""The paper's ablations as one command each (``python -m edgesam_jax.ablate``).

arms            the runs that the tables compare
tables          the tables: their rows, the paper's numbers and its conclusions
grid            trains and scores the runs of several tables and seeds, each run once
dataset_scores  scores on annotated photos
score_quality   correlation of the model's own scores with the true overlap
report          a table as Markdown and as a picture, with a verdict on each of the paper's conclusions
"""
