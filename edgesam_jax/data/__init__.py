"""Data sets as training batches.  Uses NumPy but never JAX, so that data workers start without it.

schema         ``Example``, one annotated photo, and ``BadExample``, the error for one that can't be used
source         the ``Source`` protocol that every data set implements
opening        the factory: ``DataConfig`` -> ``Source``
readers/       one module per file format
scenes/        the procedural data set
transforms     decoding photos; masks, boxes and points in the model's frame
augment        flips, scale and colour changes, applied before resizing
mask_window    masks stored as the rectangle they cover
embeddings     the store of teacher embeddings
order          the order in which a run visits the photos
pipeline       batches by step number
"""
